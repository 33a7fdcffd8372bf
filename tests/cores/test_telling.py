"""What a person is told of a run's progress."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from shoal.coordinator.reports import Before, Progress, Report
from shoal.coordinator.telling import Telling


class Few:
    """A roster of so many actors, none of which is mute."""

    def __init__(self, actors: int) -> None:
        self.actors, self.mute = actors, dict[bytes, None]()

    def __len__(self) -> int:
        return self.actors


def told(*, actors: int, trained: float, waited: float, seconds: float, before: Before | None = None) -> Progress:
    """The progress after these seconds of a life, in which the actors trained and waited so long in sum."""
    goal = SimpleNamespace(share=lambda version, steps: 0.5)
    ledger, bounds = SimpleNamespace(counts=SimpleNamespace(clients=7), left_out={}), SimpleNamespace(quiet=5.0)
    facts = SimpleNamespace(version=3, steps=0, goal=goal, ledger=ledger, roster=Few(actors), moved_at=seconds, bounds=bounds)
    now = [0.0]
    core: Any = SimpleNamespace(facts=facts)
    learner: Any = SimpleNamespace(busy=0.5 * seconds)
    observer: Any = None
    telling = Telling(core, learner, observer, lambda: now[0], before or Before())
    telling.tally.trained, telling.tally.waited, now[0] = trained, waited, seconds
    return telling.progress()


def test_the_shares_of_the_actors_time_are_one_together() -> None:
    shares = told(actors=2, trained=9.0, waited=6.0, seconds=10.0).shares
    assert shares == {"training": 0.45, "waiting": 0.3, "moving": pytest.approx(0.25), "stepping": 0.5}


@pytest.mark.parametrize("actors", [0, 1])
def test_actors_that_have_left_have_worked_too(actors: int) -> None:
    shares = told(actors=actors, trained=30.0, waited=10.0, seconds=10.0).shares
    assert shares == {"training": 0.75, "waiting": 0.25, "moving": 0.0, "stepping": 0.5}


def test_a_resumed_run_counts_on_from_what_it_had_come_to() -> None:
    progress = told(actors=2, trained=9.0, waited=6.0, seconds=10.0, before=Before(100.0, 40))
    assert (progress.seconds, progress.contributions) == (110.0, 47)
    assert progress.shares["training"] == 0.45  # of this life


def test_a_traceback_is_told_once_in_full_and_each_failure_by_its_line() -> None:
    class Ear:
        def __init__(self) -> None:
            self.texts: list[str] = []

        def report(self, report: Report) -> None:
            self.texts.append(report.text)

    ear: Any = Ear()
    core: Any = SimpleNamespace()
    telling = Telling(core, core, ear, lambda: 0.0, Before())
    for line, trace in (
        ("a: client 1 failed", "T1\nboom"),
        ("b: client 1 failed", "T1\nboom"),
        ("a: client 2", "T2"),
        ("c", ""),
    ):
        telling.report(Report("failed", f"{line}\n{trace}".rstrip(), "error"))
    assert ear.texts == ["a: client 1 failed\nT1\nboom", "b: client 1 failed (traceback as before)", "a: client 2\nT2", "c"]
