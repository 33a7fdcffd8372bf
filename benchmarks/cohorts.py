"""Rounds of convolutional networks, whose arithmetic is nearly all of the time: `fl-b` and `fl-c`.

The one idea: the bare loop (plain_torch.py) is the arithmetic on one core, so half of it is what two cores can do at best. Two
processes share caches and memory, so two bare loops are timed at once too. Data are drawn, because the time of a step does not
depend on them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shoal.benchmarks.case import Finding
from shoal.benchmarks.peers.beside import Beside
from shoal.benchmarks.peers.questions import cohorts as questions
from shoal.benchmarks.play import played
from shoal.benchmarks.timing import interleaved
from shoal.envs.datasets import Examples
from shoal.envs.population import Population
from shoal.jobs.federated import Federated
from shoal.jobs.job import Job
from shoal.nets.gpu import has_gpu

SKIP = 1  # rounds left out at the start, in which memory is first touched
MOST = 1.05
GPU_ROUNDS, GPU_SECONDS = 1_500, 60.0
SETTINGS: Mapping[str, Any] = {"local_epochs": 1, "batch_size": 10, "lr": 0.1, "eval_every": 0}


def drawn(clients: int, each: int, shape: tuple[int, ...], classes: int) -> Population:
    """Returns a population of random pictures, `each` for a client, as bytes."""
    rng = np.random.Generator(np.random.Philox(0))
    x = rng.integers(0, 256, (clients * each, *shape), np.uint8)
    return Population.in_order(Examples(x, rng.integers(0, classes, len(x)), scale=255), np.full(clients, each, np.int64))


def leaf() -> Job:
    """Returns the job of fl-b: 1,000 clients of 20 pictures of 28 x 28, 100 in a round, LEAF's network."""
    from shoal.nets.models import leaf_cnn

    population = drawn(1_000, 20, (1, 28, 28), 62)
    return Federated(leaf_cnn, population, name="fl-b", clients=1_000, cohort=100, **SETTINGS)


def cifar10() -> Job:
    """Returns the job of fl-c: pfl-research's CIFAR10 benchmark, 1,000 clients of 50 pictures, 50 in a round."""
    from shoal.nets.models import pfl_cnn

    population = drawn(1_000, 50, (3, 32, 32), 10)
    return Federated(pfl_cnn, population, name="fl-c", clients=1_000, cohort=50, **SETTINGS)


SHAPES: Mapping[str, Callable[[], Job]] = {"fl-b": leaf, "fl-c": cifar10}


def fl_b(quick: bool) -> Finding:
    """Measures seconds of a round of LEAF's network with 2 actors, beside the bare loop and pfl with two processes."""
    return _cohort("fl-b", quick)


def fl_c(quick: bool) -> Finding:
    """Measures seconds of a round of pfl's CIFAR10 benchmark with 2 actors; on a GPU, 1,500 rounds as well."""
    found = _cohort("fl-c", quick)
    if not has_gpu():
        return _with(found, {"gpu": "skipped: torch finds no CUDA device here"}, found.holds)
    seconds = on_gpu(cifar10(), 50 if quick else GPU_ROUNDS)
    whole = seconds * GPU_ROUNDS / 50 if quick else seconds
    told = {"gpu": torch.cuda.get_device_name(), "gpu_seconds_of_1500_rounds": whole, "gpu_holds": whole <= GPU_SECONDS}
    return _with(found, told, bool(found.holds and whole <= GPU_SECONDS))


def _with(found: Finding, more: Mapping[str, Any], holds: bool | None) -> Finding:
    kept = {name: getattr(found, name) for name in ("figure", "unit", "goal", "floor", "peer", "ratio", "asked")}
    return Finding(**kept, holds=holds, details={**found.details, **more})


def on_gpu(job: Job, rounds: int) -> float:
    """Returns the seconds of `rounds` rounds with one actor on the GPU, from the first round to the last."""
    known = job.options().get("engine")
    engine = {"engine": "graph"} if known is not None and "graph" in known.choices else {}
    with played(job.configured({"rounds": rounds + SKIP, **engine}), actors=1, transport="shm", device="cuda") as run:
        return sum(run.rounds(SKIP))


def _busy() -> float:
    """Returns the seconds of CPU that all processes of this machine took since it started; 0 if the system does not tell."""
    try:
        user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def _cpu() -> float:
    """Returns the seconds of CPU that this process and its children that have ended took."""
    mine = os.times()
    return mine.user + mine.system + mine.children_user + mine.children_system


def bare_loops(case: str, rounds: int, many: int) -> list[dict[str, Any]]:
    """Returns what each of so many bare loops, which run at once, tells: {"rounds": [seconds, ...], "cpu": seconds a round}."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as place:
        folders = [os.path.join(place, str(each)) for each in range(many)]
        for folder in folders:
            os.mkdir(folder)
        words = [sys.executable, "-m", "shoal.benchmarks.plain_torch"]
        begun = [subprocess.Popen([*words, its, str(rounds), "0", case], stdout=subprocess.PIPE) for its in folders]
        told = [one.communicate()[0] for one in begun]
        if any(one.returncode for one in begun):
            raise RuntimeError(f"a bare loop of {case} failed: its error is above")
        return [json.loads(one) for one in told]


def _cohort(case: str, quick: bool) -> Finding:
    rounds, job = 2 if quick else 5, SHAPES[case]()
    spent: dict[str, list[float]] = {"shoal": [], "bare": []}  # seconds of CPU a round
    others: list[float] = []  # cores that other processes took while Shoal ran

    def shoal() -> float:
        before, busy, began = _cpu(), _busy(), time.perf_counter()
        with played(job.configured({"rounds": rounds + SKIP}), actors=2, transport="shm") as run:
            found = statistics.median(run.rounds(SKIP))
        ours = _cpu() - before
        spent["shoal"].append(ours / (rounds + SKIP))
        others.append(max(0.0, _busy() - busy - ours) / (time.perf_counter() - began))
        return found

    def bare() -> float:
        (told,) = bare_loops(case, rounds + SKIP, 1)
        spent["bare"].append(told["cpu"])
        return float(statistics.median(told["rounds"][SKIP:]))

    def both() -> float:
        each = [statistics.median(told["rounds"][SKIP:]) for told in bare_loops(case, rounds + SKIP, 2)]
        return float(statistics.mean(each))

    beside = Beside(questions(case, rounds), quick, min)
    ours, one_core, at_once, _ = interleaved(1 if quick else 3, shoal, bare, both, beside.turn)
    half, peer = one_core / 2, beside.best("pfl")
    return Finding(
        figure=ours,
        unit="s a round, 2 actors",
        goal=MOST * half,
        floor=half,
        peer=peer,
        ratio=ours / half,
        holds=ours <= MOST * half,
        asked=f"at most {MOST} times half the bare loop on one core",
        details={
            "bare_loop_s": one_core,
            "two_bare_loops_s": at_once,
            "of_half_of_two": ours / (at_once / 2),
            "cores_of_others": statistics.median(others),
            "cpu_of_bare_loop": statistics.median(spent["shoal"]) / statistics.median(spent["bare"]),
            "cpu_a_round_s": {name: statistics.median(values) for name, values in spent.items()},
            "of_pfl": None if peer is None else ours / peer,
            **beside.details(),
        },
    )
