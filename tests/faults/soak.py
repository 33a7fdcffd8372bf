"""A long run with actors that come and go, watched for growth.

The one idea: after a warm-up, fit a line through memory, descriptors, threads and the time that a contribution takes; a leak
is a slope, at any level. `shoal bench soak --minutes 60` runs for an hour.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import psutil

from shoal.benchmarks.case import Finding
from shoal.benchmarks.timing import quantile
from shoal.faults.family import Family
from shoal.jobs.catalog import find

MINUTES = "SHOAL_BENCH_MINUTES"  # environment variable of `--minutes`
WARM = 0.3  # share of the time that counts as warm-up
EVERY = 1.5  # seconds between two departures
ACTORS = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """Measurements of the coordinator's process. at: seconds. memory: MB."""

    at: float
    memory: float
    descriptors: int
    threads: int


def soak(quick: bool) -> Finding:
    """Measures one life of a coordinator whose actors are killed and replaced all the time."""
    minutes = float(os.environ.get(MINUTES, "0.6" if quick else "1"))
    samples, latencies, churned, supervisor = watched(60 * minutes)
    late = [one for one in samples if one.at >= samples[0].at + WARM * 60 * minutes]
    hours = [(one.at - late[0].at) / 3_600 for one in late]
    slopes = {name: slope(hours, [getattr(one, name) for one in late]) for name in ("memory", "descriptors", "threads")}
    grown = {name: slopes[name] * hours[-1] for name in slopes}
    half = len(latencies) // 2
    early, later = quantile(latencies[:half], 0.99), quantile(latencies[half:], 0.99)
    return Finding(
        figure=grown["memory"],
        unit=f"MB that the coordinator grew by in {hours[-1] * 60:.1f} minutes",
        goal=1.0 + hours[-1],
        holds=grown["memory"] <= 1.0 + hours[-1] and abs(grown["descriptors"]) < 2 and grown["threads"] < 1 and supervisor == 0,
        asked="memory flat to 1 MB and 1 MB an hour, descriptors and threads flat, under actors that come and go",
        details={
            "minutes": minutes,
            "slopes_per_hour": slopes,
            "grown": grown,
            "came_and_went": churned,
            "supervisor_descriptors_grown": supervisor,
            "gap_p99_ms_first_half": early * 1e3,
            "gap_p99_ms_second_half": later * 1e3,
            "contributions": len(latencies),
        },
    )


def watched(seconds: float) -> tuple[list[Sample], list[float], int, int]:
    """Returns samples; seconds between one accepted contribution and the next, in order; the number of actors that were
    replaced; and the growth of the supervisor's number of descriptors.
    """
    rng, churned = Random(0), 0
    words = ["rounds=100000000", "local_epochs=1", "eval_every=0", "snapshot_every=1"]
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        job = find("digits").configured(dict(word.split("=") for word in words))
        with Family(job, words, Path(folder) / "family", ACTORS) as family:
            coordinator = family.coordinator()
            assert coordinator is not None
            before, samples = family.supervisor.num_fds(), [_sample(coordinator)]
            ends_at, next_at = time.monotonic() + seconds, time.monotonic() + EVERY
            while time.monotonic() < ends_at and family.running(0.25):
                samples.append(_sample(coordinator))
                actors = family.actors()
                if time.monotonic() >= next_at and actors:
                    next_at += EVERY
                    churned += 1
                    rng.choice(actors).send_signal(rng.choice((9, 15)))
            heard = sorted(one.at for one in family.heard() if one.verdict == "accepted")
            grown = family.supervisor.num_fds() - before
    return samples, [after - at for at, after in itertools.pairwise(heard)], churned, grown


def _sample(process: psutil.Process) -> Sample:
    with process.oneshot():
        return Sample(time.monotonic(), process.memory_info().rss / 1e6, process.num_fds(), process.num_threads())


def slope(at: Sequence[float], values: Sequence[Any]) -> float:
    """Returns the slope of a straight line through the values (least squares)."""
    return statistics.linear_regression(at, values).slope
