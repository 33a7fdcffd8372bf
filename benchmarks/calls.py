"""Calls in a pool: CPU of one at a time, of a map and of the start, a shared array, and results while processes are killed.

The one idea: Shoal and its peers answer the same questions (peers/pools.py), each in a process of its own, by turns in one run.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from shoal.benchmarks.case import Finding
from shoal.benchmarks.peers import pools, questions
from shoal.benchmarks.peers.beside import Beside
from shoal.benchmarks.timing import interleaved

SECONDS = 300  # that a question may take
FEW = 20  # calls with an array for engines that take half a second for each
CHUNKS = (1, 32, 256, 1_000)  # chunksizes of ProcessPoolExecutor.map, of which the best counts


def tasks_single(quick: bool) -> Finding:
    """CPU of a call that does nothing, one at a time."""
    number = 2_000 if quick else 5_000
    beside = Beside(questions.calls("single", number), quick, min)
    ours, ppe = _by_turns(quick, beside, "single", number)
    ray = _median(beside, "ray")
    return Finding(
        figure=ours,
        unit="us of CPU a call, one at a time",
        goal=1.3 * ppe,
        peer=ppe,
        ratio=ours / ppe,
        holds=ours <= 1.3 * ppe and (ray is None or ours <= 0.35 * ray),
        asked="at most 1.3 of ProcessPoolExecutor's, at most 0.35 of Ray's" + " (not measured)" * (ray is None),
        details={"of_ray": None if ray is None else ours / ray, **beside.details()},
    )


def tasks_map(quick: bool) -> Finding:
    """CPU of a call of a map of 10,000 calls that do nothing."""
    number = 10_000
    beside = Beside(questions.calls("map", number), quick, min)
    ours, *theirs = _by_turns(quick, beside, "map", number, CHUNKS)
    goal = min(0.4 * theirs[0], *theirs[1:])
    return Finding(
        figure=ours,
        unit="us of CPU a call of a map",
        goal=goal,
        peer=theirs[0],
        ratio=ours / theirs[0],
        holds=ours <= goal,
        asked="at most 0.4 of ProcessPoolExecutor's map(chunksize=1), and no more than with its best chunksize",
        details={"ppe": dict(zip(map(str, CHUNKS), theirs, strict=True)), **beside.details()},
    )


def tasks_start(quick: bool) -> Finding:
    """CPU from a program's start to the first result of its pool."""
    beside = Beside(questions.calls("start", 0), quick, min)
    ours, ppe = _by_turns(quick, beside, "start", 0)
    loky, ray = _median(beside, "loky"), _median(beside, "ray")
    goals = [share * peer for share, peer in ((0.5, loky), (0.1, ray)) if peer is not None]
    return Finding(
        figure=ours,
        unit="s of CPU from a program's start to the first result",
        goal=min(goals, default=None),
        peer=loky,
        ratio=None if loky is None else ours / loky,
        holds=all(ours <= goal for goal in goals) if loky is not None else None,
        asked="at most 0.5 of loky's, at most 0.1 of Ray's" + " (not measured)" * (ray is None),
        details={"ppe": ppe, "of_ray": None if ray is None else ours / ray, **beside.details()},
    )


def tasks_array(quick: bool) -> Finding:
    """CPU and memory of 100 calls that look at an array of 100 MB."""
    number = 20 if quick else 100
    beside = Beside(questions.calls("array", number), quick, min)
    more = Beside(questions.calls("memory", number), quick, min)
    ours, ppe = _by_turns(quick, beside, "array", number, few=FEW)
    copies, ppe_copies = _by_turns(True, more, "memory", number, few=FEW)
    joblib = _median(beside, "joblib")
    return Finding(
        figure=ours,
        unit=f"ms of CPU for 100 MB to {number} calls",
        goal=None if joblib is None else 0.6 * joblib,
        peer=joblib,
        ratio=None if joblib is None else ours / joblib,
        holds=None if joblib is None else ours <= 0.6 * joblib and copies <= 1.1,
        asked="at most 0.6 of the CPU of joblib's memory maps, and at most 1.1 copies of the array in memory",
        details={
            "copies": copies,
            f"ppe_of_{FEW}_calls": ppe,
            "ppe_copies": ppe_copies,
            **beside.details(),
            "copies_of_peers": more.details(),
        },
    )


def tasks_kill(quick: bool) -> Finding:
    """Results of 200 calls while a process is killed every 0.5 s."""
    number = 60 if quick else 200
    beside = Beside(questions.calls("kill", number), quick, max)
    beside.turn()
    ours = float(_asked("shoal", "kill", number, 1, lost=0.0))
    ppe = float(_asked("ppe", "kill", number, 1, lost=0.0))
    return Finding(
        figure=ours,
        unit=f"results of {number} calls, a process killed every {pools.EVERY:g} s",
        goal=float(number),
        peer=ppe,
        holds=ours == number,
        asked="a result for each call, and no call begun more often than its process was killed",
        details={"ppe": ppe, **beside.details()},
    )


def _median(beside: Beside, name: str) -> float | None:
    """The median of an engine's answers; None if there is none."""
    found = next((found for one, found in beside.found.items() if one.startswith(f"{name}_")), None)
    return statistics.median(found) if found else None


def _by_turns(
    quick: bool, beside: Beside, question: str, number: int, chunks: tuple[int, ...] = (1,), few: int = 0
) -> list[float]:
    """Return the medians of Shoal, and of ProcessPoolExecutor with each chunksize. few: calls of the latter; 0: `number`."""
    ways: list[Callable[[], float]] = [partial(_asked, "shoal", question, number, 1)]
    ways += [partial(_asked, "ppe", question, few or number, chunk) for chunk in chunks]
    return interleaved(3 if quick else 5, *ways, beside.turn)[:-1]


def _asked(name: str, question: str, number: int, chunk: int, lost: float | None = None) -> float:
    """The answer of an engine in a process of its own. lost: the answer of one that ends without all results; None: that is an
    error."""
    module = ["-m", "shoal.benchmarks.calling"] if name == "shoal" else [str(Path(pools.__file__)), name]
    command = [sys.executable, "-P", *module, question, str(number), str(chunk)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=SECONDS, check=lost is None)
    if done.returncode and lost is not None:
        return lost
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return float(found["figure"])
