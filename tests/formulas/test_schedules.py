"""Learning rates by round: the first factors, the last, and those between."""

from __future__ import annotations

import math

import pytest

from shoal.nets.schedules import SCHEDULES, cosine, step, warmup


def test_every_schedule_is_a_factor_from_0_to_1_for_any_round() -> None:
    for name, schedule in SCHEDULES.items():
        for rounds in (1, 2, 3, 10, 100):
            factors = [schedule(version, rounds) for version in range(2 * rounds)]
            assert all(0 <= factor <= 1 for factor in factors), name
            assert max(factors) == 1


def test_a_cosine_falls_from_1_to_0() -> None:
    assert [cosine(version, 4) for version in range(6)] == pytest.approx(
        [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0, 0]
    )


def test_a_step_falls_by_its_decay_every_so_many_rounds() -> None:
    assert [step(version, 9) for version in range(10)] == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001])
    assert [step(version, 100, every=2, decay=0.5) for version in range(5)] == [1, 1, 0.5, 0.5, 0.25]


def test_a_warm_up_rises_linearly_and_stays() -> None:
    assert [warmup(version, 100, over=4) for version in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert [warmup(version, 20) for version in range(3)] == [0.5, 1, 1]
    assert warmup(0, 5) == 1
