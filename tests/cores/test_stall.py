"""The stall doctor: a run that stands still names the culprit, its last state and its stack, by clocks that are handed in."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from test_core import Run, rounds

from shoal.actors.whereabouts import AFTER, EVERY, MOST, Frame, Whereabouts, stack_of, word
from shoal.actors.workers.rollout import Rollout
from shoal.coordinator.checks import Inspector
from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.events import Fold, Step
from shoal.coordinator.deciding.plans.stream import Stream
from shoal.coordinator.deciding.stall import STALL, Stall, diagnosed
from shoal.coordinator.learner import LearnerThread, Make
from shoal.coordinator.reports import Before, Progress, Report
from shoal.coordinator.telling import AGAIN, LOOK, Telling
from shoal.envs.making import make_vector, spaces_in
from shoal.envs.spaces import Discrete
from shoal.nets.flat import FlatModule
from shoal.nets.numpy_policy import NumpyPolicy
from shoal.nets.policies import ActorCritic
from shoal.protocol.codec import words_fault
from shoal.protocol.layout import Bundle
from shoal.protocol.messages import Beat
from shoal.protocol.work import Metrics, Moved, Task, Words

HANGS = {"doing": "env.step", "for": 12.3, "stack": '  File "mine.py", line 7, in step\n    time.sleep(9)\n'}


def diagnosis(run: Run, after: float, step: float = 0.0) -> Stall | None:
    return diagnosed(run.core.facts, run.core.facts.moved_at + after, step)


def beat(run: Run, name: str, told: Words) -> None:
    lease = next(iter(run.core.facts.ledger.leases.values()))
    run.arrive(name)
    run.hear(name, Beat(0, runs=(*lease.name, lease.attempt), told=told))


# The coordinator's side


def test_an_environment_that_hangs_in_step_is_named_with_its_actor_task_state_and_stack() -> None:
    run = Run(Stream(1, 9), Bounds(ahead=1)).join("a")
    beat(run, "a", HANGS)
    assert diagnosis(run, STALL) is None
    found = diagnosis(run, STALL + 1)
    assert found is not None
    assert found.text.startswith("nothing moves for 11 s: a, on task (0, 0), for ")
    assert found.text.endswith(": in env.step for 12 s")
    assert found.stack == HANGS["stack"].rstrip()  # type: ignore[union-attr]
    assert not found.learner


def test_a_task_that_takes_as_long_as_its_kind_always_takes_is_no_stall() -> None:
    run = Run(Stream(1, 9), Bounds(ahead=1)).join("a")
    run.core.facts.ledger.took["train"] = __import__("collections").deque([20.0, 30.0, 25.0])
    beat(run, "a", HANGS)
    assert diagnosis(run, 70.0) is None
    assert diagnosis(run, 76.0) is not None


def test_a_learner_that_hangs_is_named_and_a_step_that_takes_as_long_as_the_last_is_no_stall() -> None:
    run = Run(rounds(1), Bounds(ahead=1)).join("a").contribute("a")
    assert run.all(Step)
    found = diagnosis(run, 12.0)
    assert found == Stall("nothing moves for 12 s: the learner, in learn, at the step to version 1", learner=True)
    assert diagnosis(run, 12.0, step=5.0) is None


def test_contributions_that_the_learner_never_folds_in_are_the_learner_s() -> None:
    run = Run(rounds(1), Bounds(ahead=1)).join("a").send("a")
    assert run.all(Fold)
    found = diagnosis(run, 12.0)
    assert found is not None
    assert (found.learner, found.text) == (
        True,
        "nothing moves for 12 s: the learner, in learn, at contributions that are here",
    )


def test_weights_that_do_not_arrive_are_named() -> None:
    run = Run(rounds(1), Bounds(ahead=1)).join("a")
    run.slow.add("a")
    run.core.facts.roster.actors[run.sessions["a"]].under_way = True
    found = diagnosis(run, 12.0)
    assert found is not None
    assert found.text.endswith("weights 0 on their way to it, in wait_weights")
    assert found.stack == ""


def test_actors_to_which_no_plan_gives_a_task_wait_for_credit() -> None:
    run = Run(rounds(1), Bounds(ahead=1)).join("a", "b").contribute("a")
    run.step()
    run.core.facts.ledger.leases.clear()
    found = diagnosis(run, 12.0)
    assert found is not None
    assert found.text == (
        "nothing moves for 12 s: the plan Rounds, which gives no task, for 0 s; the actors are in wait_credit"
    )


def test_a_run_that_waits_for_nothing_that_can_hang_is_not_stalled() -> None:
    assert diagnosis(Run(rounds(1)), 99.0) is None  # no actor has joined
    endless = Run(rounds(1), Bounds(endless=True)).join("a")
    assert diagnosis(endless, 99.0) is None  # a pool without a call


@pytest.mark.parametrize(
    "told",
    [
        {"doing": "env.step; rm -rf", "for": 1.0},
        {"doing": 7, "for": 1.0},
        {"doing": "env.step", "for": "long"},
        {"doing": "env.step"},
        {},
    ],
)
def test_words_that_no_actor_says_are_not_shown(told: dict[str, Any]) -> None:
    run = Run(Stream(1, 9), Bounds(ahead=1)).join("a")
    beat(run, "a", {"stack": "x", **told})
    found = diagnosis(run, 12.0)
    assert found is not None
    assert (found.stack, " in " in found.text) == ("", False)


def test_a_stack_is_escaped_and_has_a_bound() -> None:
    run = Run(Stream(1, 9), Bounds(ahead=1)).join("a")
    beat(run, "a", {**HANGS, "stack": "\x1b[2J\n" * 500})
    found = diagnosis(run, 12.0)
    assert found is not None
    assert "\x1b" not in found.stack
    assert len(found.stack.split("\n")) <= 40


def test_a_task_that_its_worker_has_left_has_no_place() -> None:
    run = Run(Stream(1, 9), Bounds(ahead=1)).join("a")
    beat(run, "a", HANGS)
    run.contribute("a")
    found = diagnosis(run, 12.0)
    assert found is None or "env.step" not in found.text


class Seen:
    """An observer that keeps reports."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    def stepped(self, version: int, metrics: Metrics, progress: Progress) -> None: ...

    def moved(self, progress: Progress) -> None: ...

    def report(self, report: Report) -> None:
        self.reports.append(report)


class Hangs:
    """An aggregator whose step waits for an event that does not come."""

    linear = False

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def weights(self) -> Bundle:
        return Bundle.pack({"w": np.zeros(2, np.float32)})

    def fold(self, contribution: Any) -> None: ...

    def step(self) -> Moved:
        self.begun.set()
        assert self.go_on.wait(60)
        return Moved(weights=False)

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, weights: Any, state: Any) -> None: ...


def test_the_console_gets_the_learner_s_stack_once_for_each_time_that_the_run_stands_still() -> None:
    run = Run(rounds(1), Bounds(ahead=1)).join("a").contribute("a")
    hangs, seen, now = Hangs(), Seen(), [run.now]
    learner = LearnerThread(hangs, Inspector(), lambda: 0.0, wake=lambda: None)
    telling = Telling(run.core, learner, seen, lambda: now[0], Before())
    try:
        learner.put([Make(run.all(Step)[0])])
        assert hangs.begun.wait(60)
        for _ in range(int(2 * AGAIN / LOOK)):
            now[0] += LOOK
            telling.look()
    finally:
        hangs.go_on.set()
        assert learner.finish(60)
    [report] = [one for one in seen.reports if one.kind == "stall"]
    first, *stack = report.text.split("\n")
    assert first.startswith("nothing moves for 10 s: the learner, in learn, at the step to version 1")
    assert "in step" in report.text
    assert any("self.go_on.wait" in line for line in stack)


# The actor's side


class Stuck(gymnasium.Env[Any, Any]):
    """An environment whose third step waits for an event."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, here: threading.Event, go_on: threading.Event, where: str) -> None:
        self.here, self.go_on, self.where, self.steps = here, go_on, where, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if self.where == "reset":
            self._wait()
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.where == "step" and self.steps == 3:
            self._wait()
        return np.zeros(3, np.float32), 0.0, False, False, {}

    def _wait(self) -> None:
        self.here.set()
        assert self.go_on.wait(60)


@contextmanager
def stuck(where: str) -> Iterator[int]:
    """The identity of a thread whose rollout hangs there."""
    here, go_on = threading.Event(), threading.Event()
    make = partial(make_vector, lambda: Stuck(here, go_on, where))
    weights = FlatModule(ActorCritic(spaces_in(lambda: Stuck(here, go_on, "")), seed=1)).bundle()
    worker = Rollout(make, NumpyPolicy(Discrete(2)), 8, 2, seed=1)
    thread = threading.Thread(target=worker.run, args=(weights, 0, Task(0, 0, (0,))))
    thread.start()
    try:
        assert here.wait(60)
        assert thread.ident is not None
        yield thread.ident
    finally:
        go_on.set()
        thread.join(60)


@pytest.mark.parametrize("where", ["step", "reset"])
def test_a_worker_that_hangs_in_an_environment_is_found_there_by_its_stack(where: str) -> None:
    with stuck(where) as ident:
        frames, text = stack_of(ident)
        assert word(frames) == f"env.{where}"
        assert "assert self.go_on.wait(60)" in text
        assert "_bootstrap" not in text
    assert stack_of(None) == ((), "") or stack_of(None) == ([], "")


def test_a_place_is_told_after_5_s_at_one_task_and_again_every_2_s_until_the_task_is_over() -> None:
    looks = []

    def stack() -> tuple[list[Frame], str]:
        looks.append(1)
        return [Frame("shoal.envs.vector", "step"), Frame("mine", "step")], "täglich\n" * 2_000

    first: dict[str, Any] = {}
    whereabouts = Whereabouts(stack, first)
    task = (3, 1, 65_537)
    assert whereabouts.look((), 0.0) is first
    assert whereabouts.look(task, 1.0) is first
    assert whereabouts.look(task, 1.0 + AFTER) is first
    told = whereabouts.look(task, 1.5 + AFTER)
    assert (told["doing"], told["for"]) == ("env.step", AFTER + 0.5)
    assert len(told["stack"]) == MOST
    assert words_fault(dict(told)) == ""
    assert whereabouts.look(task, 1.6 + AFTER) is told
    assert whereabouts.look(task, 1.5 + AFTER + EVERY) is not told
    assert len(looks) == 2
    after = whereabouts.look((3, 2, 65_537), 99.0)
    assert after == {}
    assert whereabouts.look((), 100.0) is after
    assert math.isclose(len(looks), 2)


def test_a_word_follows_the_innermost_place_that_is_known() -> None:
    rollout = Frame("shoal.actors.workers.rows", "fill")
    assert word([rollout, Frame("shoal.nets.numpy_policy", "parameters")]) == "act"
    assert word([rollout, Frame("shoal.envs.isolated", "step"), Frame("select", "poll")]) == "env.step"
    assert word([Frame("mine", "run")]) == "work"
    assert word([]) == "work"
