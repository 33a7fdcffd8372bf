"""The desk of a sweep: arms that are judged whole, trials that wait without a core, deaths that cost a try and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from shoal.sweeps.desk import RETRIES, Answer, Begin, Desk, Over, Trial


def desk(seeds: int = 1, places: int = 2, arms: float = 3, judge: Callable[[int, int, float], bool] | None = None) -> Desk:
    return Desk(range(seeds), places, arms, lambda arm: None, judge)


def begun(desk: Desk) -> list[int]:
    return [deed.trial.number for deed in desk.turn() if isinstance(deed, Begin)]


def test_as_many_trials_begin_as_there_are_places_and_an_end_makes_room() -> None:
    it = desk(seeds=2)
    assert begun(it) == [0, 1]
    assert begun(it) == []
    it.ended(1, "complete", 0.5)
    assert begun(it) == [2]


def test_an_arm_is_over_with_its_last_trial_and_its_value_is_the_mean() -> None:
    it = desk(seeds=2, arms=1)
    it.turn()
    it.ended(0, "complete", 0.25)
    assert it.turn() == []
    it.ended(1, "complete", 0.75)
    assert it.turn() == [Over(0, "complete", 0.5)]
    assert it.done


def test_an_arm_of_which_a_trial_failed_has_no_value() -> None:
    it = desk(seeds=2, arms=1)
    it.turn()
    it.ended(0, "complete", 0.9)
    it.ended(1, "failed", why="diverged")
    assert it.turn() == [Over(0, "failed", None)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_value_that_is_no_finite_number_is_a_failure(value: float | None) -> None:
    it = desk(arms=1)
    it.turn()
    it.ended(0, "complete", value)
    assert it.trials[0].state == "failed"


def test_an_arm_is_judged_once_at_a_step_by_the_mean_of_all_its_seeds() -> None:
    judged: list[tuple[int, int, float]] = []
    it = desk(seeds=3, places=2, arms=1, judge=lambda *what: bool(judged.append(what)))
    assert begun(it) == [0, 1]
    it.said(0, 1, 1.0)
    it.said(1, 1, 2.0)
    assert begun(it) == [2]  # trials that wait for their verdict need no core
    assert judged == []
    it.said(2, 1, 6.0)
    answers = it.turn()
    assert judged == [(0, 1, 3.0)]
    assert [deed.trial.number for deed in answers if isinstance(deed, Answer)] == [0, 1]  # two places
    it.said(0, 2, 1.0)
    assert [deed.trial.number for deed in it.turn() if isinstance(deed, Answer)] == [2]


def test_all_trials_of_a_pruned_arm_end() -> None:
    it = desk(seeds=3, places=1, arms=1, judge=lambda arm, step, mean: True)
    for number in range(3):
        assert begun(it) == [number]
        it.said(number, 1, 0.0)
    assert [(deed.trial.number, deed.goes_on) for deed in it.turn() if isinstance(deed, Answer)] == [
        (0, False),
        (1, False),
        (2, False),
    ]
    for number in range(3):
        it.ended(number, "pruned")
    assert it.turn() == [Over(0, "pruned", None)]


def test_a_trial_that_has_ended_is_not_waited_for() -> None:
    judged: list[float] = []
    it = desk(seeds=2, arms=1, judge=lambda arm, step, mean: bool(judged.append(mean)))
    it.turn()
    it.said(0, 1, 4.0)
    assert it.turn() == []
    it.ended(1, "failed", why="it raised")
    assert [deed.trial.number for deed in it.turn() if isinstance(deed, Answer)] == [0]
    assert judged == [4.0]


def test_trials_that_report_at_steps_of_their_own_are_never_stuck() -> None:
    it = desk(seeds=2, arms=1, judge=lambda arm, step, mean: False)
    it.turn()
    it.said(0, 5, 1.0)
    it.said(1, 2, 1.0)
    assert [deed.trial.number for deed in it.turn() if isinstance(deed, Answer)] == [1]
    it.said(1, 7, 1.0)
    assert [deed.trial.number for deed in it.turn() if isinstance(deed, Answer)] == [0]


def test_a_death_costs_its_own_trial_a_try_and_the_third_ends_it() -> None:
    it = desk(seeds=1, places=2, arms=2)
    it.turn()
    for _ in range(RETRIES):
        assert it.died(0, "was ended by signal 9")
        assert begun(it) == [0]
    assert not it.died(0, "was ended by signal 9")
    assert it.trials[0].why == "its process was ended by signal 9, 3 times"
    assert (it.trials[0].state, it.trials[1].state, it.trials[1].attempt) == ("failed", "running", 1)


def test_a_trial_that_begins_again_hears_the_verdicts_that_were_given() -> None:
    judged: list[int] = []
    it = desk(seeds=2, places=2, arms=1, judge=lambda arm, step, mean: bool(judged.append(step)))
    it.turn()
    it.said(0, 1, 1.0)
    it.said(1, 1, 1.0)
    it.turn()
    it.died(0, "was ended by signal 9")
    assert begun(it) == [0]
    it.said(0, 1, 1.0)
    assert [deed.trial.number for deed in it.turn() if isinstance(deed, Answer)] == [0]
    assert judged == [1]


def test_what_was_over_in_an_earlier_life_stays_over() -> None:
    it = desk(seeds=2, arms=2)
    it.known(0, {0: Trial(0, 0, 0, "complete", 1, value=0.5)}, told=False)
    assert begun(it) == [1, 2]
    it.ended(1, "complete", 1.5)
    assert it.turn()[-1] == Over(0, "complete", 1.0)


def test_an_arm_that_was_told_is_not_told_again() -> None:
    it = desk(arms=1)
    it.known(0, {0: Trial(0, 0, 0, "complete", 1, value=0.5)}, told=True)
    assert it.turn() == []
    assert it.done


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_every_trial_ends_once_and_no_more_compute_than_there_are_places(seed: int) -> None:
    luck = random.Random(seed)
    seeds, places, arms = luck.randint(1, 4), luck.randint(1, 3), luck.randint(1, 6)
    prunes = luck.random() < 0.7
    it = desk(seeds, places, arms, (lambda arm, step, mean: luck.random() < 0.2) if prunes else None)
    at: dict[int, int] = {}  # trial -> its step, of those that compute
    waiting: dict[int, int] = {}
    told: list[int] = []
    pruned: set[int] = set()
    for _ in range(5_000):
        for deed in it.turn():
            match deed:
                case Begin(trial):
                    assert trial.number not in at
                    assert trial.number not in waiting
                    at[trial.number] = 0
                case Answer(trial, True):
                    at[trial.number] = waiting.pop(trial.number)
                case Answer(trial, False):
                    pruned.add(trial.number)
                    at[trial.number] = waiting.pop(trial.number)
                case Over(arm):
                    told.append(arm)
        assert len([number for number in at if number not in pruned]) <= places
        if it.done:
            break
        assert at, "nothing computes, and nothing is done"
        number = luck.choice(sorted(at))
        step = at.pop(number)
        if number in pruned:
            pruned.discard(number)
            it.ended(number, "pruned")
        elif luck.random() < 0.1:
            it.died(number, "died")
        elif step == 5 or luck.random() < 0.1:
            it.ended(number, "complete", 1.0)
        else:
            it.said(number, step + 1, luck.random())
            (waiting if prunes else at)[number] = step + 1
    assert it.done
    assert sorted(told) == list(range(arms))
    assert sorted(it.trials) == list(range(arms * seeds))
    assert all(trial.over for trial in it.trials.values())


def test_a_generation_begins_when_the_one_before_it_is_over() -> None:
    it = Desk([0, 1], 8, 4, lambda arm: None, None, generation=2)
    assert begun(it) == [0, 1, 2, 3]
    for number in (0, 1, 2):
        it.ended(number, "complete", 1.0)
        assert begun(it) == []
    it.ended(3, "failed", why="diverged")
    assert [deed for deed in it.turn() if isinstance(deed, Over)] == [Over(1, "failed", None)]  # first the end is told
    assert begun(it) == [4, 5, 6, 7]
