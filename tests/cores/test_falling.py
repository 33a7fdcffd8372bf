"""A run that rises and falls back says so once, and its age in seconds is told in parts."""

from __future__ import annotations

import pytest

from shoal.coordinator.ages import Ages
from shoal.coordinator.falling import Falling
from shoal.coordinator.tally import quantile


def watched(*means: float, spread: float = 1.0) -> tuple[Falling, list[bool]]:
    watch = Falling()
    told = [watch.seen(version, [mean - spread, mean + spread] * 50) for version, mean in enumerate(means)]
    return watch, told


def test_a_return_that_rises_and_falls_by_more_than_a_quarter_of_its_rise_is_told_once() -> None:
    watch, told = watched(20, 60, 475, 400, 350, 314, 494, 200)
    assert told == [False, False, False, False, True, False, False, False]
    assert watch.best == 494
    assert watch.fallen  # and the closing words say it again, of the end
    assert watch.line(8) == (
        "the mean return of the last 100 episodes rose to 494 at version 6 and fell back to 200: "
        "a smaller max_lag (it is 8) or a smaller lr may help"
    )
    assert watch.line(0).endswith(": a smaller lr may help")


def test_a_return_that_recovers_is_no_fall_at_the_end() -> None:
    watch, told = watched(20, 475, 300, 470)
    assert (told.count(True), watch.fallen) == (1, False)


def test_noise_is_no_fall() -> None:
    assert watched(20, 24, 21, 25, 22, spread=30.0)[1].count(True) == 0  # below the spread of the returns
    assert watched(-1500, -200, -500, spread=10.0)[1].count(True) == 0  # less than a quarter of the rise
    assert watched(5, 4, 3, 2, 1, spread=0.1)[1].count(True) == 1  # it began at its best, and only fell


def test_the_age_of_what_was_learned_from_is_told_in_its_parts() -> None:
    ages = Ages()
    assert ages.flush() == {}
    ages.came(0, trained=1.0, took=1.5, now=10.0)
    ages.came(0, trained=2.0, took=-1.0, now=12.0)  # of an earlier life: when it was given is not known
    ages.begins(1, 13.0)
    ages.came(1, trained=4.0, took=3.9, now=14.0)  # for the next step; two clocks may differ a little
    ages.ends(17.0)
    told = ages.flush()
    assert told == {"rollout_seconds": 7 / 3, "transfer_seconds": 0.25, "queue_seconds": 2.0, "learn_seconds": 4.0}
    ages.begins(2, 20.0)
    ages.ends(21.0)
    assert ages.flush() == {"queue_seconds": 6.0, "learn_seconds": 1.0}
    ages.begins(3, 22.0)  # of a run without environments
    ages.ends(23.0)
    assert ages.flush() == {}


def test_quantiles_are_interpolated_between_neighbours() -> None:
    assert quantile([3], 0.9) == 3
    assert quantile([0, 1], 0.5) == 0.5
    assert quantile([0, 1, 2, 8], 0.9) == pytest.approx(2 + 0.7 * 6)
