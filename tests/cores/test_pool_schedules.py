"""Schedules of a pool on made-up processes: deaths, kills, cancels, priorities, needs, slow calls; and bugs planted in it."""

from __future__ import annotations

import random

import pytest

from shoal.coordinator.deciding.resources import Machine, Need
from shoal.simulation.mutants import Mutant, planted
from shoal.simulation.pools import MUTANTS, Violation, play

SEEDS = 40


@pytest.mark.parametrize("tens", range(10))
def test_every_call_ends_once_and_for_a_reason_that_it_earned(tens: int) -> None:
    assert sum(play(seed) for seed in range(10 * tens, 10 * tens + 10)) > 100


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_bug_planted_in_the_pool_is_caught(mutant: Mutant) -> None:
    with planted(mutant), pytest.raises((Violation, KeyError)):
        sum(play(seed) for seed in range(SEEDS))


def test_planted_bugs_differ() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len({mutant[1:] for mutant in MUTANTS}) == len(MUTANTS)


def test_of_ten_thousand_needs_the_sum_is_never_more_than_the_machine_has() -> None:
    draws = random.Random(0)
    machine = Machine(8, 1_000, [1.0] * 4)
    out: list[tuple[Need, tuple[int, ...]]] = []
    met = 0
    for _ in range(10_000):
        need = Need(draws.choice([0, 0.25, 1, 3, 8]), draws.choice([0, 1, 400]), draws.choice([0, 0, 0.3, 0.5, 1, 3]))
        assert not machine.never(need)
        while machine.lacks(need):
            machine.give_back(*out.pop(draws.randrange(len(out))))
        out.append((need, machine.take(need)))
        met += 1
        assert sum(one.cores for one, _ in out) <= 8 + 1e-6
        assert sum(one.nbytes for one, _ in out) <= 1_000
        shares = [sum(min(1.0, one.gpus) for one, gpus in out if gpu in gpus) for gpu in range(4)]
        assert max(shares) <= 1 + 1e-6
        assert all(len(set(gpus)) == max(one.gpus > 0, int(one.gpus)) for one, gpus in out)
    while out:
        machine.give_back(*out.pop())
    assert (met, machine.used_nbytes) == (10_000, 0)
    assert max(abs(machine.used_cores), *(abs(gpu - 1) for gpu in machine.gpus)) < 1e-6
