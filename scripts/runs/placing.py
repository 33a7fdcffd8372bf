"""The place where a policy's network is computed, with inference=auto: by a short trial before a run.

The one idea: one process for all actors gains what a larger batch or a GPU saves, and loses what the actors' cores could have
computed beside each other. Four times tell which is more: of a step of an actor's environments, of the network for its
observations in the actor, and in the inference process of the network for an actor's observations and for those of all. A copy
of this process measures them. The choice is made once, and stands in config.toml.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from shoal.actors import close, work_of
from shoal.actors.inferring import Computing
from shoal.actors.workers.rollout import Rollout
from shoal.jobs.job import Job
from shoal.jobs.problems import Environment
from shoal.nets.acting import Parted
from shoal.protocol.errors import UserError
from shoal.protocol.work import Task
from shoal.runs.sizes import in_a_copy, uses_gpu
from shoal.runs.threads import cores, lone

BATCHES = ("inference_min_batch", "inference_max_batch", "inference_wait", "inference_device")
NONE: Mapping[str, Any] = {}
TURNS = 3  # measurements of each time: the shortest counts
ROUND = 6e-5  # seconds of the inference process for a question beside the network: two packets, and the waking of a thread
WORTH = 0.9  # share of the time with inference=actor that central inference may take to be chosen


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of one process alone. step: one step of an actor's environments. act: the network for half of their observations,
    in the actor. all: for half of the observations of all actors, in the inference process. one: for half of an actor's, in the
    inference process; 0: as long as in the actor."""

    step: float
    act: float
    all: float
    one: float = 0.0

    def in_actors(self, actors: int, many: int) -> float:
        """Seconds for one step of all actors' environments, if each actor computes its network. many: cores."""
        return (self.step + 2 * self.act) * actors / min(actors, many)

    def central(self, actors: int, many: int, alone: bool) -> float:
        """The same with the inference process and two halves. alone: each question is computed in a batch of its own."""
        infers = 2 * (actors * (self.one or self.act) if alone else self.all) + 2 * actors * ROUND
        return max(infers, self.step, (actors * self.step + infers) / many)


def infers_on(job: Job, device: str) -> str:
    """The device on which the job's inference process computes. device: the run's. Raises UserError for a GPU that the settings
    name and that is not there."""
    problem = job.problem
    assert isinstance(problem, Environment)
    found = problem.inferring_on(device, bool(getattr(job.method, "repeats", True)))
    if found != device and found == "cuda" and not uses_gpu(found):
        fix = "inference_device=auto takes the run's device"
        raise UserError(f"inference_device=cuda: this machine has no CUDA device that torch can use; {fix}")
    return found


def told_on(job: Job, device: str) -> str:
    """A line about the device of the inference process; "" if nobody could expect another one."""
    on, asked = infers_on(job, device), getattr(job.problem, "inference_device", "auto")
    if on == "cpu" and device != "cpu" and asked == "auto":
        why = "a run in rounds has the bits of inference=actor; inference_device=cuda takes the GPU"
        return f"the inference process computes on the processor: {why}"
    return "" if on == "cpu" else f"the inference process computes on {on}"


def placed(job: Job, actors: int, device: str = "auto") -> tuple[Job, tuple[str, ...]]:
    """The job with a place in place of inference=auto, and lines about how it was chosen. actors: of this machine. Raises
    UserError for a device of the inference process that is not there."""
    where = getattr(job.problem, "inference", "actor")
    if where == "actor":
        return job, ()
    on = infers_on(job, "cuda" if uses_gpu(device) else "cpu")
    if where != "auto":
        return job, ()
    batches = {name: job.options()[name].default for name in BATCHES}  # settings that have no effect there
    here = job.configured({"inference": "actor", **batches})
    if actors < (2 if on == "cpu" else 1) or sys.platform != "linux":
        why = (
            "a run with one actor, or none, gains nothing by it"
            if actors < 2
            else f"it needs Linux, and this is {sys.platform}"
        )
        return here, (f"inference=actor: {why}",)
    if not lone():
        return here, ("inference=actor: this process has threads, so that no trial is made; inference=central sets it",)
    found = in_a_copy(lambda: iter([costs(here, actors, on)]))
    if not found:
        return here, ("inference=actor: a trial of where to compute the network failed",)
    return chosen(here, Costs(*found[0]), actors, cores(), {name: job.plain()[name] for name in BATCHES})


def chosen(job: Job, found: Costs, actors: int, many: int, kept: Mapping[str, Any] = NONE) -> tuple[Job, tuple[str, ...]]:
    """The job with the faster place, and a line that says both times. job: with inference=actor. kept: the settings of batches,
    which it has in the other place."""
    alone = bool(getattr(job.method, "repeats", True))
    times = found.in_actors(actors, many), found.central(actors, many, alone)
    central = times[1] < WORTH * times[0]
    told = (
        f"a step of {actors} actors' environments takes {1e3 * times[0]:.2f} ms, by a trial, and {1e3 * times[1]:.2f} central"
    )
    if not central:
        return job, (f"inference=actor: {told}; inference=central sets it",)
    halves = cast(Any, job.method).num_envs >= 2 * cast(Any, job.problem).group
    made = job.configured({"inference": "central", "double_buffer": halves, **kept})
    return made, (f"inference=central double_buffer={str(halves).lower()}: {told}; inference=actor sets it",)


def costs(job: Job, actors: int, device: str = "cpu", clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Measure `Costs` of this job, in this process. device: of the inference process."""
    worker, problem = cast(Rollout, job.worker()), cast(Any, job.problem)
    weights = job.aggregator("cpu").weights()
    try:
        spent = []
        for turn in range(TURNS):
            first = clock()
            work = work_of(worker, weights, 0, Task(0, turn, (0,)), None)
            spent.append((clock() - first) / worker.rollout_length)
        assert work.bundle is not None
    finally:
        close(worker)
    policy, (dtype, shape) = cast(Parted, problem.acts(job.seed)), problem.spaces().record()
    central: Computing = policy if device == "cpu" else problem.inferred(job.seed, device)()
    policy.load(weights)
    central.load(weights)

    def took(rows: int, by: Computing) -> float:
        seen, state, times = np.zeros((rows, *shape), dtype), policy.begin(rows), []
        for _ in range(TURNS):
            first = clock()
            by.numbers(seen, state)
            times.append(clock() - first)
        return min(times)

    half = max(1, worker.num_envs // 2)
    act, everyone, whole = took(half, policy), took(half * actors, central), took(worker.num_envs, policy)
    one = 0.0 if central is policy else took(half, central)
    return [max(0.0, min(spent) - whole), act, everyone, one]
