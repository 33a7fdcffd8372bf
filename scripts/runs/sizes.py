"""The size of a trajectory, its environments and its length, where neither the user nor a preset chose it: by a short trial
before a run.

The one idea: a step of the vector and a pass of the network cost nearly as much for few environments as for many, so more
environments make more steps a second, up to a point that differs between machines and environments. A copy of this process acts
and learns with a few sizes, and the smallest that comes near the fastest is taken. The length stays as it is unless another one
is clearly faster, because the learner's targets depend on it. The choice is made once, and stands in config.toml.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from typing import Any, cast

from shoal.actors import close, work_of
from shoal.jobs.job import Job
from shoal.protocol.draws import kept_globals
from shoal.protocol.parent import die_with_parent, forked
from shoal.protocol.work import Contribution, Task
from shoal.runs.threads import cores, few, lone

SIZES = (32, 64, 128, 256, 512)  # environments of a trajectory
LENGTHS = (16, 32, 64, 128)  # steps of each environment in a trajectory
SIZE = ("num_envs", "rollout_length")
UPDATES = 250  # gradient steps that a run should have, at least: with more rows each, too few steps are made to learn
TURNS = 3  # trajectories of each size: the first is not timed, the fastest of the others counts
LONGEST = 2.0  # seconds of the whole trial, after which no other size is tried
PATIENCE = 20.0  # seconds after which the trial is given up: an environment may hang
NEAR = 0.95  # share of the fastest rate that is near enough: fewer environments learn from fresher rows
MESSAGE = 5e-4  # seconds that a trajectory costs beside its steps: messages and two threads' waking


@dataclass(frozen=True, slots=True)
class Timed:
    """A trial of one size. act, learn: seconds for each environment step, of one actor and of the learner, each alone."""

    num_envs: int
    rollout_length: int
    act: float
    learn: float

    def rate(self, actors: int, many: int) -> float:
        """Environment steps a second that so many actors and the learner can make together, on so many cores."""
        return 1.0 / max(self.act / max(1, min(actors, many)), self.learn, (self.act + self.learn) / many)


def sized(job: Job, actors: int, device: str = "auto") -> tuple[Job, tuple[str, ...]]:
    """The job with the size of its trajectories, and lines about how it was chosen. actors: of this machine.

    The job stays as it is if the user or a preset chose num_envs or rollout_length, if `tune_envs` is off, if the method has no
    such setting, or if the trial cannot be made: without actors, with more threads in this process, with a GPU.
    """
    named = {*(job.given or ()), *(job.preset.settings if job.preset else ())}
    free = job.given is not None and not named & {*SIZE}
    if not free or not getattr(job.method, "tune_envs", False) or not actors or not job.ours:
        return job, ()
    if len(sizes_of(job)) < 2 or not lone() or not hasattr(os, "fork") or uses_gpu(device):
        return job, ()
    found = _in_a_copy(job, actors)
    if not found:
        return job, ("a trial of sizes of trajectories failed, and num_envs and rollout_length stay at their defaults",)
    best = chosen(found, actors, cores())
    told = ", ".join(f"{one.num_envs} x {one.rollout_length}: {one.rate(actors, cores()):,.0f}" for one in found)
    line = (
        f"num_envs={best.num_envs} rollout_length={best.rollout_length}: steps a second that a trial makes of num_envs x "
        f"rollout_length: {told}; setting either leaves out the trial"
    )
    return job.configured({name: getattr(best, name) for name in SIZE}), (line,)


def chosen(found: list[Timed], actors: int, many: int) -> Timed:
    """The trial that is chosen: of those with the length of the first, the one with the fewest environments whose rate is near
    that of the fastest; or one with these environments and another length, if it is clearly faster."""
    rates = {one: one.rate(actors, many) for one in found}
    alike = [one for one in found if one.rollout_length == found[0].rollout_length]
    best = next(one for one in alike if rates[one] >= NEAR * max(rates[each] for each in alike))
    faster = [one for one in found if one.num_envs == best.num_envs and NEAR * rates[one] > rates[best]]
    return max(faster, key=lambda one: rates[one], default=best)


def most_rows(job: Job) -> float:
    """The rows of a trajectory that leave a run of this job UPDATES gradient steps."""
    method: Any = job.method
    return float(method.total_timesteps * getattr(method, "num_minibatches", 1) / (UPDATES * method.trajectories))


def sizes_of(job: Job) -> list[int]:
    """The numbers of environments that leave a run of this job UPDATES gradient steps; the default, if no number does."""
    method: Any = job.method
    return [size for size in SIZES if size * method.rollout_length <= most_rows(job)] or [method.num_envs]


def trial(job: Job, actors: int, clock: Callable[[], float] = time.perf_counter) -> Iterator[Timed]:
    """Act and learn with each number of environments, smallest first, and then with the chosen number and other lengths, longer
    ones first, while a size is faster than the one before. No size is begun after LONGEST seconds."""
    began, many, length = clock(), cores(), cast(Any, job.method).rollout_length
    found: list[Timed] = []

    def tried(sizes: list[tuple[int, int]], before: float) -> Iterator[Timed]:
        for size in sizes:
            if clock() - began > LONGEST:
                return
            found.append(_timed(job.configured(dict(zip(SIZE, size, strict=True))), size, clock))
            yield found[-1]
            if (rate := found[-1].rate(actors, many)) < before:
                return
            before = rate

    yield from tried([(size, length) for size in sizes_of(job)], 0.0)
    best = chosen(found, actors, many)
    lengths = [each for each in LENGTHS if each * best.num_envs <= most_rows(job)]
    for way in ([each for each in lengths if each > length], [each for each in reversed(lengths) if each < length]):
        yield from tried([(best.num_envs, each) for each in way], best.rate(actors, many))


def _timed(job: Job, size: tuple[int, int], clock: Callable[[], float]) -> Timed:
    worker, aggregator = job.worker(), job.aggregator("cpu")
    acts, learns = [], []
    batch = max(1, getattr(job.method, "trajectories", 1))
    try:
        weights = aggregator.weights()
        for turn in range(TURNS):
            works, act = [], 0.0
            for index in range(batch):
                task = Task(0, turn * batch + index, (0,))
                first = clock()
                works.append((task, work_of(worker, weights, 0, task, None)))
                act += clock() - first + MESSAGE
            steps = max(1, sum(work.steps for _, work in works))
            first = clock()
            for task, work in works:
                aggregator.fold(Contribution(task, 0, 0, work))
            aggregator.step()
            acts.append(act / steps)
            learns.append((clock() - first) / steps)
    finally:
        close(worker)
    return Timed(*size, min(acts[1:]), min(learns[1:]))


def _in_a_copy(job: Job, actors: int) -> list[Timed]:
    """The trial, in a copy of this process."""
    return [Timed(*its) for its in in_a_copy(lambda: (list(astuple(one)) for one in trial(job, actors)))]


def in_a_copy(measure: Callable[[], Iterator[list[Any]]]) -> list[list[Any]]:
    """The numbers that a trial yields, made in a copy of this process, so that nothing of it is left here. Empty if it fails or
    hangs."""
    here, there = os.pipe()
    parent = os.getpid()

    def life() -> None:
        die_with_parent(parent)
        os.close(here)
        few()
        with kept_globals(), os.fdopen(there, "w") as out:
            for one in measure():
                out.write(json.dumps(one) + "\n")
                out.flush()

    pid = forked(life)
    os.close(there)
    heard, until = b"", time.monotonic() + PATIENCE
    while (left := until - time.monotonic()) > 0 and select.select([here], [], [], left)[0]:
        if not (piece := os.read(here, 4096)):
            break
        heard += piece
    os.close(here)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return [json.loads(line) for line in heard.splitlines() if line.endswith(b"]")]


def uses_gpu(device: str) -> bool:
    """True if the learner would use this machine's GPU."""
    from shoal.nets.gpu import has_gpu

    return device != "cpu" and has_gpu()
