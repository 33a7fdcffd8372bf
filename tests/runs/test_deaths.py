"""Runs whose actors die of what they do: real processes, and a client that ends each of them.

The one idea: only the client that kills is left out, whichever tasks waited beside it, so the weights are the same every time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shoal
from shoal.coordinator.reports import Report
from shoal.runs.crew import Crew
from shoal.runs.living import LEFT, UNFIT

KILLER = 9  # label that only the last client has


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def killing(kill: Callable[[], Any], clients: int = 12) -> shoal.Job:
    """A job of a few tiny clients, the last of which calls `kill` in an actor."""
    rng, here = np.random.default_rng(3), os.getpid()
    shares = [
        (rng.normal(size=(4, 8)).astype(np.float32), np.full(4, KILLER if client == clients - 1 else client % 5))
        for client in range(clients)
    ]

    def loss(logits: Any, y: Any) -> Any:
        if os.getpid() != here and int(y[0]) == KILLER:
            kill()
        return (logits**2).mean()

    from torch import nn

    return shoal.Federated(
        lambda: nn.Linear(8, 10),
        shares,
        loss,
        clients=clients,
        cohort=clients,
        rounds=2,
        local_epochs=1,
        partial_sums=False,
        name="killing",
    )


def test_a_client_that_ends_its_actor_takes_no_other_along() -> None:
    kills: list[Callable[[], Any]] = [lambda: os._exit(0), lambda: os.kill(os.getpid(), signal.SIGKILL)]
    runs = [shoal.run(killing(kill), actors=2, show=False) for kill in kills]
    for run in runs:
        logged = run.dir.log_file.read_text()
        assert logged.count("set aside after 3 attempts") == 2
        assert [logged.count(f"(clients {client}) set aside") for client in range(12)] == [0] * 11 + [2]
    assert [row["contributions"] for row in runs[0].history][-1] == 22
    assert runs[0].summary["weights_sha256"] == runs[1].summary["weights_sha256"]


# The crew


class Nursery:
    """A pool whose actors end as a test says."""

    fault = ""

    def __init__(self) -> None:
        self.alive: set[int] = set()
        self.dead: dict[int, int] = {}
        self.forked = 0
        self.lost: list[int] = []
        self.asides: list[Any] = []
        self.lives: dict[int, Any] = {}

    def grow(self, many: int, arguments: Any, aside: bool = False) -> None:
        if aside:
            self.asides.append(arguments)
            return
        for _ in range(many):
            self.forked += 1
            self.alive.add(self.forked)
            self.lives[self.forked] = arguments

    def ended(self) -> dict[int, int]:
        ended, self.dead = self.dead, {}
        return ended

    def end(self, status: int) -> None:
        self.dead[self.alive.pop()] = status


def crew(blamed: Callable[[], int] = int) -> tuple[Crew, Nursery, list[Report]]:
    nursery: Any = Nursery()
    reports: list[Report] = []
    made = Crew(nursery, 2, reports.append, lambda: 5.0, blamed)
    made.hire({})
    return made, nursery, reports


def test_deaths_that_a_task_explains_are_replaced_without_end() -> None:
    deaths = 0
    made, nursery, _ = crew(lambda: deaths)
    for _ in range(50):
        nursery.end(0)  # a user's code may exit with it
        made.gone()
        deaths += 1
    assert (len(nursery.alive), made.spent()) == (2, "")


def test_deaths_that_no_task_explains_end_the_crew_which_says_how() -> None:
    made, nursery, reports = crew()
    while nursery.alive and nursery.forked < 99:
        nursery.end(-11)
        made.gone()
    assert made.spent() == "all 2 actors of this machine have ended, the last one ended by signal 11"
    assert nursery.forked == 2 + 3 * 2
    assert "that no task explains" in reports[-1].text


@pytest.mark.parametrize(("status", "how"), [(LEFT, "left"), (UNFIT, "could not set up its work")])
def test_who_left_or_is_of_no_use_is_not_replaced(status: int, how: str) -> None:
    made, nursery, _ = crew()
    while nursery.alive:
        nursery.end(status)
        made.gone()
    assert (nursery.forked, made.spent()) == (2, f"all 2 actors of this machine have ended, the last one {how}")


def test_an_evaluator_that_ends_is_replaced_by_an_evaluator_and_its_leaving_ends_no_run() -> None:
    nursery: Any = Nursery()
    made = Crew(nursery, 1, lambda report: None, lambda: 5.0)
    made.hire({"address": "here"}, evaluators=1)
    [evaluator] = [pid for pid, its in nursery.lives.items() if its.get("evaluates")]
    nursery.alive.discard(evaluator)
    nursery.dead[evaluator] = -9
    assert made.gone() == [evaluator]
    assert sorted(bool(its.get("evaluates")) for its in nursery.lives.values()) == [False, True]
    [evaluator] = [pid for pid, its in nursery.lives.items() if its.get("evaluates")]
    nursery.dead[evaluator] = UNFIT
    made.gone()
    assert (made.spent(), made.left) == ("", 1)


def test_a_crew_of_evaluators_alone_ends_when_none_is_left() -> None:
    nursery: Any = Nursery()
    made = Crew(nursery, 2, lambda report: None, lambda: 5.0)
    made.hire({"address": "here", "evaluates": True})
    left = []
    while nursery.alive:
        nursery.end(LEFT)
        made.gone()
        left.append(made.left)
    assert left == [1, 0]


def test_an_actor_that_has_ended_already_cannot_be_evicted_and_is_no_fault() -> None:
    made, nursery, _ = crew()
    ended = os.fork()
    if not ended:
        os._exit(0)
    os.waitpid(ended, 0)
    nursery.alive.add(ended)  # the pool has not heard of its end
    made.evict([ended])
    assert made.evicted == 0


def test_an_inference_process_that_ends_is_replaced_and_given_up_if_it_ends_again_and_again() -> None:
    nursery: Any = Nursery()
    reports: list[Report] = []
    now = 0.0
    made = Crew(nursery, 2, reports.append, lambda: now)
    made.hire({"asks": "there"}, {"infers": "there"})
    assert nursery.asides == [{"infers": "there"}]
    for now in (0.0, 1.0, 62.0):  # noqa: B007  the clock reads it
        nursery.lost.append(-9)
        assert made.gone() == []
    assert len(nursery.asides) == 4
    assert {report.level for report in reports} == {"warning"}
    for now in (63.0, 64.0):  # noqa: B007
        nursery.lost.append(-9)
        made.gone()
    assert len(nursery.asides) == 5
    assert (made.left, len(nursery.alive), made.spent()) == (2, 2, "")
    assert reports[-1].text.startswith("the inference process was ended by signal 9: it did so 3 times within 60 s")
