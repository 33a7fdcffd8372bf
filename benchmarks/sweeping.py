"""Sweeps: the steps that pruning saves, the CPU that a trial costs beyond its work, and the wall time beside Optuna's threads.

The one idea: each figure is of commands that a user types, in processes of their own, by turns in one run.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from shoal.benchmarks.case import Finding
from shoal.benchmarks.timing import interleaved
from shoal.sweeps.arms import Arm, as_good

SHARE = 0.35  # most steps of ASHA to those of the full grid
OVERHEAD = 5.0  # most ms of CPU a trial beyond what the objective takes
WALL = 0.7  # most wall time to that of study.optimize(n_jobs=2)
SEEDS = "seed=10..17"  # with which the two best arms are compared: none of the seeds that chose them
TRIALS = 40  # of the objective that computes
OBJECTIVES = """
def nothing(trial):
    return trial.suggest_float("x", 0, 1)


def busy(trial):
    x, total = trial.suggest_float("x", 0, 1), 0
    for number in range(8_000_000):
        total += number & 7
    return x + total * 0
"""
BARE = """
import os, objectives, types

trial = types.SimpleNamespace(suggest_float=lambda *words: 0.5)
for process in range({processes}):
    if os.fork() == 0:
        for number in range({each}):
            objectives.busy(trial)
        os._exit(0)
for process in range({processes}):
    os.wait()
"""
OPTUNA = """
import optuna, sys, objectives

optuna.logging.set_verbosity(optuna.logging.WARNING)
sampler = {{"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}}["{sampler}"](seed=0)
optuna.create_study(sampler=sampler).optimize(objectives.{name}, n_trials={trials}, n_jobs={jobs})
"""


def sweep(quick: bool) -> Finding:
    """Measures the share of steps that ASHA spends on a grid of digits. quick: a smaller grid, shorter runs, one repeat."""
    with _place() as folder:
        pruned, details = _pruned(folder, arms=16 if quick else 50, rounds=27 if quick else 81)
        cost = {sampler: _cost(folder, sampler, 100 if quick else 400) for sampler in ("random", "tpe")}
        ways = (_ours("busy", "random", TRIALS), _theirs("busy", "random", TRIALS, 2), _bare(1), _bare(2))
        walls = [partial(_wall, folder, command) for command in ways]
        ours, theirs, alone, both = interleaved(1 if quick else 3, *walls)
    overhead, wall = max(one["ours"] for one in cost.values()), ours / theirs
    equal = bool(details["equal"])
    return Finding(
        figure=pruned,
        unit="of the steps of the full grid that ASHA spends",
        goal=SHARE,
        holds=pruned <= SHARE and equal and overhead <= OVERHEAD and wall <= WALL,
        asked=f"at most {SHARE:g} at an equal best within noise; at most {OVERHEAD:g} ms of CPU of overhead a trial; wall time "
        f"at most {WALL:g} of study.optimize(n_jobs=2)",
        details={
            **details,
            "overhead_ms": {name: one["ours"] for name, one in cost.items()},
            "optuna_overhead_ms": {name: one["theirs"] for name, one in cost.items()},
            "wall_ratio": wall,
            "wall_s": ours,
            "optuna_n_jobs_2_s": theirs,
            "two_bare_processes_ratio": both / alone,
        },
    )


@contextmanager
def _place() -> Iterator[Path]:
    """A folder with the objectives."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        (Path(folder) / "objectives.py").write_text(OBJECTIVES)
        yield Path(folder)


def _pruned(folder: Path, arms: int, rounds: int) -> tuple[float, dict[str, Any]]:
    """The share of steps, and the two best arms compared on seeds of their own, pair by pair."""
    rates = [10 ** (-3 + 3 * at / (arms - 1)) for at in range(arms)]
    axis = "lr=" + ",".join(f"{rate:.4g}" for rate in rates)
    fixed = (f"rounds={rounds}", "local_epochs=1", "eval_every=1")
    full = _swept(folder, "digits", axis, *fixed)
    asha = _swept(folder, "digits", axis, *fixed, "--pruner", "asha")
    best = [found["best"]["params"]["lr"] for found in (full, asha)]
    share = asha["steps"] / full["steps"]
    details: dict[str, Any] = {
        "arms": arms,
        "rounds": rounds,
        "best_lr_full": best[0],
        "best_lr_asha": best[1],
        "best_accuracy_full": full["best"]["mean"],
        "best_accuracy_asha": asha["best"]["mean"],
        "asha_trials": asha["trials"],
    }
    if best[0] == best[1]:
        return share, {**details, "equal": True}
    both = _swept(folder, "digits", f"lr={best[0]},{best[1]}", SEEDS, *fixed, folder="both")
    rows = [json.loads(line) for line in (folder / "both" / "trials.jsonl").read_text().splitlines()]
    values = [{row["seed"]: row["value"] for row in rows if row["arm"] == at and row["state"] == "complete"} for at in (0, 1)]
    one, other = (Arm(at, {}, values[at]) for at in (0, 1))
    means = [arm["mean"] for arm in both["arms"]]
    equal = as_good(one, other) or means[1] >= means[0]
    return share, {**details, "equal": equal, "fresh_seeds_full": means[0], "fresh_seeds_asha": means[1]}


def _swept(place: Path, *words: str, folder: str = "") -> Mapping[str, Any]:
    """The summary of a sweep."""
    command = [sys.executable, "-m", "shoal", "sweep", *words, "--json", "--quiet"]
    command += ["--run-dir", folder] if folder else []
    done = subprocess.run(command, cwd=place, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1):  # 1: a trial failed, which `trials` says
        raise subprocess.CalledProcessError(done.returncode, command)
    found: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _cost(folder: Path, sampler: str, trials: int) -> dict[str, float]:
    """Milliseconds of CPU, of all processes, that a trial of an objective that does nothing costs: the slope over trials."""
    few = 10

    def slope(one: Sequence[str], many: Sequence[str]) -> float:
        return 1_000 * (_cpu(folder, many) - _cpu(folder, one)) / trials

    ours = [_ours("nothing", sampler, number) for number in (few, few + trials)]
    theirs = [_theirs("nothing", sampler, number, 1) for number in (few, few + trials)]
    found = interleaved(3, lambda: slope(*ours), lambda: slope(*theirs))
    return dict(zip(("ours", "theirs"), found, strict=True))


def _ours(name: str, sampler: str, trials: int) -> list[str]:
    words = [
        "sweep",
        f"objectives.py:{name}",
        "--sampler",
        sampler,
        "--trials",
        str(trials),
        "--actors",
        "2",
        "--quiet",
        "--json",
    ]
    return [sys.executable, "-m", "shoal", *words]


def _theirs(name: str, sampler: str, trials: int, jobs: int) -> list[str]:
    return [sys.executable, "-c", OPTUNA.format(name=name, sampler=sampler, trials=trials, jobs=jobs)]


def _cpu(folder: Path, command: Sequence[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _bare(processes: int) -> list[str]:
    """The same work in one plain process, or shared out among several: what the machine allows at this time."""
    return [sys.executable, "-c", BARE.format(processes=processes, each=TRIALS // processes)]


def _wall(folder: Path, command: Sequence[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began
