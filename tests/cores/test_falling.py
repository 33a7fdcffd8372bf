"""A run that rises and falls back says so once, and its age in seconds is told in parts."""

from __future__ import annotations

import numpy as np
import pytest
from test_core import Run

from shoal.coordinator.ages import Ages
from shoal.coordinator.causes import Causes
from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.plans.stream import Stream
from shoal.coordinator.falling import Falling
from shoal.coordinator.tally import Tally, quantile
from shoal.protocol.messages import Contribute


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


def test_a_few_bad_episodes_after_none_are_no_fall() -> None:
    watch = Falling()
    assert not watch.seen(1, [1.0] * 100)
    assert not watch.seen(2, [1.0] * 98 + [0.0] * 2)  # 0.98, with a standard error of 0.014
    assert watch.seen(3, [1.0] * 80 + [0.0] * 20)
    assert watch.fallen


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


def test_the_versions_of_a_lag_are_split_by_what_they_were_made_during() -> None:
    causes = Causes()
    for version in range(1, 9):
        causes.begins(version)
        causes.ends(version, now=10.0 * version)  # version 1 at 10 s, version 2 at 20 s
    causes.begins(9)
    assert causes.flush() == {}  # nothing that lagged
    # acted by version 2 from 35 s to 65 s, while 4, 5 and 6 were made, when 3 was on its way; here at 85 s, after 7 and 8; the
    # learner makes 9, and 9 is full, so it waits for 10
    causes.came(2, 10, trained=30.0, took=50.0, now=85.0)
    causes.came(8, 9, trained=1.0, took=-1.0, now=85.0)  # the way of an earlier life's task is not known
    causes.ends(9, 90.0)
    causes.begins(10)
    assert causes.flush() == {"rollout_lag": 0, "transfer_lag": 0, "queue_lag": 0, "learn_lag": 1}
    causes.ends(10, 100.0)
    causes.begins(11)
    assert causes.flush() == {"rollout_lag": 3, "transfer_lag": 3, "queue_lag": 1, "learn_lag": 1}
    assert causes.batch == {8: 1}
    assert causes.histograms()["transfer_lag"] == [[0, 1], [3, 1]]


def test_the_parts_of_a_lag_add_up_to_it_whatever_clocks_say() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        causes, now = Causes(), 0.0
        for version in range(1, 30):
            now += float(rng.exponential())
            causes.begins(version)
            causes.ends(version, now)
        made_from, ahead, stepping = int(rng.integers(29)), int(rng.integers(2)), bool(rng.integers(2))
        onto = 29 + ahead + stepping
        if stepping:
            causes.begins(30)
        causes.came(made_from, onto, float(rng.exponential(9)), float(rng.exponential(9)), now + float(rng.exponential()))
        causes.begins(onto + 1)
        assert sum(causes.flush().values()) == onto - made_from


def test_quantiles_are_interpolated_between_neighbours() -> None:
    assert quantile([3], 0.9) == 3
    assert quantile([0, 1], 0.5) == 0.5
    assert quantile([0, 1, 2, 8], 0.9) == pytest.approx(2 + 0.7 * 6)


def test_steps_that_came_too_late_are_counted_as_dropped_and_not_as_learned() -> None:
    run = Run(Stream(1, 1), Bounds(ahead=1)).join("a", "b")
    run.arrive("b")
    run.slow.add("b")
    run.contribute("a", steps=2).step()
    run.contribute("a", steps=3).step()
    run.send("b", steps=32)  # made from version 0, two behind
    assert run.verdicts("b") == ["stale"]
    assert (run.core.facts.steps, run.core.facts.ledger.counts.dropped) == (5, 32)


def test_the_lags_of_a_version_are_told_as_quantiles_unless_all_are_0() -> None:
    message, tally = Contribute((0, 0), 0, 0, 1.0, "", False, {}, {}, 0.0, 1.0), Tally()
    for lag in (0, 1, 2, 8):
        tally.train(message, lag)
    told = tally.flush()
    assert (told["lag_min"], told["lag_p50"], told["lag_max"]) == (0, 1.5, 8)
    assert told["lag_p90"] == pytest.approx(6.2)
    tally.train(message, 0)
    assert "lag_p50" not in tally.flush()


def test_the_lags_of_a_step_are_not_told_again_after_a_step_without_any() -> None:
    tally = Tally()
    tally.train(Contribute((0, 1), 1, 0, 1.0, "layout", False, {}, {}, 0.0, 1.0), 3)
    tally.flush()
    assert tally.batch == {3: 1}
    tally.flush()
    assert tally.batch == {}


def test_a_row_tells_the_version_that_its_evaluations_played_if_it_is_one() -> None:
    tally, found = Tally(), []
    for played in ([4, 4], [], [5, 6], [7]):
        for version in played:
            tally.evaluate(Contribute((0, 1), 1, version, 1.0, "", False, {}, {}, 0.0, 1.0))
        tally.flush()
        found.append(tally.played)
    assert found == [4, -1, -1, 7]
