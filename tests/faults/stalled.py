"""Actors that are stopped while a run goes on, and their cost for the coordinator and for the other actors.

The one idea: a stopped process is the worst of slow readers, because its connection lives and takes nothing in. The case stops
a tenth of the actors and compares the coordinator's memory and the others' rate before and meanwhile.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from shoal.benchmarks.case import Finding
from shoal.faults.broadcasting import FLOATS, job
from shoal.faults.family import Family

MODEL = 4 * FLOATS / 1e6  # MB
SECONDS = 4.0


@dataclass(frozen=True)
class Stretch:
    """A stretch of a run. versions: made in it. began, ended: monotonic seconds. memory: the coordinator's peak in MB."""

    versions: int
    began: float
    ended: float
    memory: float


def stalled(quick: bool) -> Finding:
    """Measures with weights in shared memory and over sockets; one actor in ten is stopped."""
    many, versions = (10, 25) if quick else (200, 50)
    found = {way: one_way(many, versions, share=way == "shm") for way in ("shm", "tcp")}
    grown = max(one["grown_models"] for one in found.values())
    kept = min(one["rate_kept"] for one in found.values())
    return Finding(
        figure=grown,
        unit="models that the coordinator grew by",
        goal=2.0,
        holds=grown <= 2.0 and kept >= 0.95,
        asked="at most 2 models, and the others keep 95 % of their rate, through 50 versions of 20 MB",
        details={**found, "actors": many, "stopped": many // 10, "model_mb": MODEL, "versions": versions},
    )


def one_way(many: int, versions: int, share: bool) -> dict[str, Any]:
    """Measures one transport. A version needs contributions of half the actors, so the run waits for no single actor."""
    place = f"{Path(__file__).with_name('broadcasting.py')}:job"
    words = [f"buffer={many // 2}"]
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder, ExitStack() as stack:
        own = job.configured({"buffer": many // 2})
        family = stack.enter_context(Family(own, words, Path(folder) / "f", many, name=place, share=share))
        coordinator = family.coordinator()
        assert coordinator is not None
        stretch(family, coordinator, 5)
        victims = family.actors()[: many // 10]
        before = stretch(family, coordinator, versions)
        for victim in victims:
            victim.suspend()
            stack.callback(victim.resume)
        during = stretch(family, coordinator, versions)
        others = [one.at for one in family.heard({victim.pid for victim in victims}) if one.verdict == "accepted"]
    return {
        "grown_models": (during.memory - before.memory) / MODEL,
        "rate_kept": _rate(others, during) / _rate(others, before),
        "before_mb": before.memory,
        "during_mb": during.memory,
        "versions_before": before.versions,
        "versions_during": during.versions,
        "others_per_s": _rate(others, before),
    }


def _rate(moments: Sequence[float], during: Stretch) -> float:
    return sum(during.began <= at < during.ended for at in moments) / (during.ended - during.began)


def stretch(family: Family, coordinator: psutil.Process, versions: int) -> Stretch:
    """Waits for at least `versions` versions and SECONDS seconds, and returns the stretch. Raises RuntimeError if the run makes
    no version for 60 s.
    """
    first, began, memory = version(family), time.monotonic(), 0.0
    now, moved_at = first, began
    while now < first + versions or time.monotonic() < began + SECONDS:
        if not family.running(0.02) or time.monotonic() > moved_at + 60:
            raise RuntimeError(f"the run stands still at version {now}:\n{family.said()[-2_000:]}")
        memory = max(memory, coordinator.memory_info().rss / 1e6)
        if (newer := version(family)) > now:
            now, moved_at = newer, time.monotonic()
    return Stretch(now - first, began, time.monotonic(), memory)


def version(family: Family) -> int:
    """Returns the newest version that the run has written down."""
    return last_row(family.run / "metrics.jsonl", lambda row: int(row["version"]))


def last_row(path: Path, value: Callable[[dict[str, Any]], int]) -> int:
    with suppress(FileNotFoundError), path.open("rb") as rows:
        rows.seek(max(0, rows.seek(0, 2) - 4_096))
        for line in reversed(rows.read().splitlines()):
            with suppress(json.JSONDecodeError):
                return value(json.loads(line))
    return 0
