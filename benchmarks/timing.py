"""Timing: measurements that are compared run in turn, in one process, and a median is reported.

The one idea: on a shared machine only ratios of neighbours mean something.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

Way = Callable[[], float]
"""Does its work once and returns the measurement: seconds, or a rate."""


def interleaved(repeats: int, *ways: Way) -> list[float]:
    """Returns the median of each way, measured in turn: a b c, a b c, ..."""
    found: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats):
        for values, way in zip(found, ways, strict=True):
            values.append(way())
    return [statistics.median(values) for values in found]


def timed(work: Callable[[], Any], times: int = 1) -> Way:
    """Returns a way that measures seconds of one call of `work`, as the mean over `times` calls."""

    def way() -> float:
        began = time.perf_counter()
        for _ in range(times):
            work()
        return (time.perf_counter() - began) / times

    return way


def quantile(values: Sequence[float], share: float) -> float:
    """Returns the smallest value that at least `share` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
