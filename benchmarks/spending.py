"""The CPU of a reinforcement-learning run by cause: rollouts, learning, and everything else, read in one and the same run.

The one idea: the clock of a thread is read around each rollout and each step of the learner, and the clock of a process beside
it. What a process used and neither of the two explains is transport, protocol and waking. So no run is compared with another,
whose noise would be larger than the share that is looked for, and no start of a process is in it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from shoal.actors import Worker, close, work_of
from shoal.aggregators import Aggregator
from shoal.jobs.methods.impala import IMPALA
from shoal.jobs.methods.method import Start
from shoal.jobs.problems import Problem
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Moved, Task, Work

JOB = """
from shoal import Reinforcement
from shoal.benchmarks.spending import Spending

job = Reinforcement({env!r}, method=Spending())
"""
ACTED, ACTOR, LEARNED, FOLDED, COORDINATOR = "acted_cpu", "actor_cpu", "learned_cpu", "folded_cpu", "coordinator_cpu"


@dataclass(frozen=True)
class Spending(IMPALA):
    """IMPALA whose metrics tell CPU seconds. Means over a version's trajectories: acted_cpu, of the rollout's thread, and
    actor_cpu, of the actor's process since the rollout before. Of a version: learned_cpu, of the learner's thread in the step;
    folded_cpu, of the same thread in taking trajectories in; coordinator_cpu, of its process since the step before."""

    name: ClassVar[str] = "spending"

    def worker(self, problem: Problem, seed: int) -> Worker:
        return Acted(super().worker(problem, seed))

    def aggregator(self, start: Start, device: str) -> Aggregator:
        return Learned(super().aggregator(start, device))


class Acted:
    """A worker whose work of training tells its CPU seconds."""

    def __init__(self, inner: Worker) -> None:
        self.inner, self.before = inner, time.process_time()

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        began = time.thread_time()
        work = work_of(self.inner, weights, client, task, brief)
        acted, now = time.thread_time() - began, time.process_time()
        told = {ACTED: (acted, 1.0), ACTOR: (now - self.before, 1.0)}
        self.before = now
        return replace(work, totals={**work.totals, **told}) if task.kind == "train" else work

    def close(self) -> None:
        close(self.inner)


class Learned:
    """An aggregator whose steps tell their CPU seconds."""

    linear: ClassVar[bool] = False

    def __init__(self, inner: Aggregator) -> None:
        self.inner, self.before, self.folded = inner, time.process_time(), 0.0
        self.weights, self.state, self.load = inner.weights, inner.state, inner.load

    def fold(self, contribution: Contribution) -> None:
        began = time.thread_time()
        self.inner.fold(contribution)
        self.folded += time.thread_time() - began

    def step(self) -> Moved:
        began = time.thread_time()
        moved = self.inner.step()
        learned, now = time.thread_time() - began, time.process_time()
        told = {LEARNED: learned, FOLDED: self.folded, COORDINATOR: now - self.before}
        self.before, self.folded = now, 0.0
        return replace(moved, metrics={**moved.metrics, **told})


@dataclass(frozen=True)
class Spent:
    """CPU seconds for a million steps: of rollouts, of learning, of copies of trajectories by the learner, of all else that the
    actors' processes did, and of all else that the coordinator did."""

    rollouts: float
    learning: float
    copies: float
    actors: float
    coordinator: float

    @property
    def whole(self) -> float:
        return self.rollouts + self.learning + self.copies + self.actors + self.coordinator

    @property
    def outside(self) -> float:
        """The share that is neither rollouts nor learning."""
        return 1.0 - (self.rollouts + self.learning) / self.whole


def spent(rows: Sequence[Mapping[str, Any]]) -> Spent:
    """Returns the CPU between the first row of metrics and the last. The first row's own is left out."""
    sums = dict.fromkeys((ACTED, ACTOR, LEARNED, FOLDED, COORDINATOR), 0.0)
    for before, row in pairwise(rows):
        many = row["contributions"] - before["contributions"]
        for name in sums:
            sums[name] += row["metrics"][name] * (many if name in (ACTED, ACTOR) else 1)
    each = 1e6 / max(1, rows[-1]["steps"] - rows[0]["steps"])
    acted, actor, learned, folded, coordinator = (each * total for total in sums.values())
    return Spent(acted, learned, folded, actor - acted, coordinator - learned - folded)


def spending(folder: Path, env: str) -> str:
    """Writes a job that tells its CPU by cause, and returns its name for `shoal simulate`."""
    file = folder / "spending_job.py"
    file.write_text(JOB.format(env=env))
    return f"{file}:job"
