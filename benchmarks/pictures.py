"""Reinforcement learning from pictures: ALE/Pong-v5 with the built-in Nature CNN, and on a GPU with IMPALA's ResNet.

The one idea: the ceiling is what the parts leave, each timed alone on one thread: rollouts (the simulator's threads and acting)
and learning. A share of the ceiling is a ratio of CPU: that of the parts, to that of a live run and of cores that stood idle
meanwhile. On a machine with nothing else to do it equals the ratio of steps a second. With a GPU for both networks the ceiling
is what all cores make that do nothing but simulate.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch

from shoal.benchmarks.acting import Turns
from shoal.benchmarks.case import Finding
from shoal.benchmarks.peers import questions
from shoal.benchmarks.peers.beside import Beside
from shoal.benchmarks.timing import interleaved
from shoal.jobs.job import Job
from shoal.jobs.reinforcement import Reinforcement
from shoal.protocol.work import Contribution, Task

PONG = "ALE/Pong-v5"
SHARE, RESNET, SECONDS = 0.8, 18_500.0, 180.0
ASKED = (
    "at least 80 % of the ceiling that simulation, acting and learning leave on these cores, and in either precision twice "
    "Sample Factory's"
)
ASKED_GPU = "Pong at 18 in at most 3 minutes; IMPALA's ResNet at least 18,500 steps/s and 80 % of the simulation's bound"
PARTS = ("simulating", "acting", "learning")
WORDS = ("method=impala", "eval_episodes=0")  # everything else as the preset has it
THERE = ("inference=central", "double_buffer=true")  # the network of actors is computed on the run's device


def pong(quick: bool) -> Finding:
    """Measures steps a second of IMPALA on ALE/Pong-v5 with the Nature CNN, on CPUs only."""
    if find_spec("ale_py") is None:
        return Finding(None, "steps/s", asked=ASKED, details={"skipped": "ale_py is not installed: pip install 'shoal[atari]'"})
    steps, job = 12_000 if quick else 30_000, Reinforcement(PONG, method="impala")
    ours, parts = Turns(f"gymnasium:{PONG}", steps, *WORDS).started(), list[Mapping[str, float]]()
    rounded = Turns(f"gymnasium:{PONG}", steps, *WORDS, "precision=bf16").started()
    beside = Beside(questions.pong(8_000 if quick else 20_000), quick)

    def ceiling() -> float:
        parts.append(parts_of(job, 3 if quick else 8))
        return bound(parts[-1])

    _, floor, _, _ = interleaved(1 if quick else 3, ours, ceiling, rounded, beside.turn)
    live, factory = ours.median, beside.best("samplefactory")
    alone = {name: statistics.median(one[name] for one in parts) for name in PARTS}
    share = sum(alone.values()) / (live.cpu + live.idle)
    return Finding(
        figure=live.rate,
        unit="steps/s of ALE/Pong-v5 (4 frames a step), Nature CNN, collected and learned from, 2 actors, CPUs only",
        goal=SHARE * floor,
        floor=floor,
        peer=factory,
        ratio=share,
        holds=share >= SHARE and (factory is None or max(live.rate, rounded.median.rate) >= 2 * factory),
        asked=ASKED + (" (not measured)" if factory is None else ""),
        details={
            "ours": ours.plain(),
            "bf16": rounded.plain(),
            "share_of_ceiling_by_cpu": share,
            "microseconds_of_cpu_a_step": {**alone, "live": live.cpu, "idle_cores": live.idle},
            "times_samplefactory": None if factory is None else live.rate / factory,
            "bf16_times_samplefactory": None if factory is None else rounded.median.rate / factory,
            "environment": list(job.problem.conditions()),
            "settings": {name: job.plain()[name] for name in ("num_envs", "rollout_length", "batch", "ahead")},
            **beside.details(),
        },
    )


def parts_of(job: Job, repeats: int) -> Mapping[str, float]:
    """Returns microseconds of CPU a step of this process for each of PARTS. Simulating is timed by random actions in
    environments of its own; acting is the rest of a rollout."""
    torch.set_num_threads(1)
    worker, learner = job.worker(), job.aggregator("cpu")
    rolled = learned = steps = 0.0
    for turn in range(repeats + 1):
        began = cpu()
        work = worker.run(learner.weights(), 0, Task(0, turn, (0,)))
        between = cpu()
        learner.fold(Contribution(Task(0, turn, (0,)), 0, 0, work))
        learner.step()
        if turn:  # the first one warms up
            rolled, learned = rolled + between - began, learned + cpu() - between
            steps += work.steps
    simulated = _simulated(worker, repeats)
    if hasattr(worker, "close"):
        worker.close()
    return {"simulating": simulated, "acting": 1e6 * rolled / steps - simulated, "learning": 1e6 * learned / steps}


def _simulated(worker: Any, repeats: int) -> float:
    """Returns microseconds of CPU a step of the worker's environments, whose actions are drawn at random."""
    envs, rows = worker.make_envs(worker.num_envs), repeats * worker.rollout_length
    try:
        rng = torch.Generator().manual_seed(0)
        envs.reset(0)
        actions = torch.randint(envs.spaces.action.size, (rows, worker.num_envs), generator=rng).numpy()
        began = cpu()
        for row in actions:
            envs.step(row)
        return 1e6 * (cpu() - began) / actions.size
    finally:
        envs.close()


def cpu() -> float:
    """Returns CPU seconds of all threads of this process."""
    used = os.times()
    return used.user + used.system


def bound(parts: Mapping[str, float]) -> float:
    """Returns steps a second if all cores did nothing but the parts."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores * 1e6 / sum(parts.values())


def rl_gpu(quick: bool) -> Finding:
    """Measures IMPALA on ALE/Pong-v5 with learner and inference process on a GPU: steps a second with its ResNet, beside those
    of actors that compute it on their cores, and seconds to a return of 18."""
    unit = "steps/s of ALE/Pong-v5 with IMPALA's ResNet, learner and acting on the GPU"
    needs = {"a CUDA device": torch.cuda.is_available(), "ale_py": find_spec("ale_py") is not None}
    missing = [name for name, there in needs.items() if not there]
    if missing:
        return Finding(None, unit, asked=ASKED_GPU, details={"skipped": f"needs {' and '.join(missing)}, not found here"})
    actors, job = max(2, (os.cpu_count() or 2) - 2), Reinforcement(PONG, method="impala")
    words = (*WORDS, "--device", "cuda", "batch=8")
    few, many = (60_000, 60_000) if quick else (1_000_000, 8_000_000)
    turns = Turns(f"gymnasium:{PONG}", few, *words, *THERE, "network=impala", actors=actors)
    cores = Turns(f"gymnasium:{PONG}", few // 10, *words, "network=impala", actors=actors)
    solved = Turns(f"gymnasium:{PONG}", many, *words, *THERE, actors=actors)
    _, _, _, floor = interleaved(1, turns, cores, solved, lambda: simulation_bound(job, 8))
    rate, seconds = turns.median.rate, solved.median.seconds_to(18.0)
    return Finding(
        figure=rate,
        unit=unit,
        goal=RESNET,
        floor=floor,
        ratio=rate / RESNET,
        holds=None if quick else meets(rate, floor, seconds),
        asked=ASKED_GPU,
        details={
            "resnet": turns.plain(),
            "resnet_acting_on_cores": cores.plain(),
            "nature": solved.plain(),
            "seconds_to_18": seconds,
            "share_of_simulation_bound": rate / floor,
            "device": torch.cuda.get_device_name(),
            "environment": list(job.problem.conditions()),
        },
    )


def meets(rate: float, floor: float, seconds: float | None) -> bool:
    """Returns whether a GPU's figures are those that are asked for. rate: steps a second with the ResNet. floor: of simulation
    alone. seconds: to a return of 18; None: the run did not come to it."""
    return rate >= max(RESNET, SHARE * floor) and seconds is not None and seconds <= SECONDS


def simulation_bound(job: Job, repeats: int) -> float:
    """Returns steps a second if all cores did nothing but step the job's environments."""
    worker = job.worker()
    try:
        return bound({"simulating": _simulated(worker, repeats)})
    finally:
        if hasattr(worker, "close"):
            worker.close()
