"""Cost of checking a client's delta and adding it to a sum, in every form.

The one idea: a delta is read once for the check and once for the addition. The floor is the time of the addition alone. The
deltas take turns and together are larger than a cache, so they come from memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle

import numpy as np

from shoal.benchmarks.case import Finding
from shoal.benchmarks.floors import BUSY, weighted_sum
from shoal.benchmarks.jobs import vector
from shoal.benchmarks.timing import Way, interleaved, timed
from shoal.nets.adding import TorchAdder
from shoal.protocol.exact import PartialSum
from shoal.protocol.grid import Adder
from shoal.protocol.layout import Bundle

FLOATS = 1_200_000  # 4.8 MB
WEIGHT = 3.0


def sums(quick: bool) -> Finding:
    """Measures ms for 4.8 MB: plain sums by torch, by numpy and with weight 1; exact sums by one addition and by casts."""
    times, deltas = 20 if quick else 60, cycle(_deltas())
    ways: dict[str, Way] = {
        "plain": _adding(PartialSum(vector(FLOATS), False, TorchAdder()), deltas, times),
        "plain_numpy": _adding(PartialSum(vector(FLOATS), False), deltas, times),
        "plain_of_weight_1": _adding(PartialSum(vector(FLOATS), False), deltas, times, weight=1.0),
        "exact": _adding(PartialSum(vector(FLOATS)), deltas, times),
        "exact_by_casts": _adding(PartialSum(vector(FLOATS), adder=Casting()), deltas, times),
        "floor": lambda: weighted_sum(FLOATS, times),
    }
    found = dict(zip(ways, interleaved(9 if quick else 21, *ways.values()), strict=True))
    plain, floor, gain = found["plain"], found["floor"], found["exact_by_casts"] / found["exact"]
    return Finding(
        figure=plain * 1e3,
        unit="ms for 4.8 MB checked and added to a plain sum",
        goal=2 * floor * 1e3,
        floor=floor * 1e3,
        ratio=plain / floor,
        holds=plain <= 2 * floor and gain >= 1.3,
        asked="at most twice what the addition alone takes; exact sums at least 1.3 times as fast as by casts",
        details={**{f"{name}_ms": 1e3 * value for name, value in found.items()}, "exact_gain": gain},
    )


class Casting(Adder):
    """Adds exact terms by casts, the way for terms of any size."""

    def small(self, total: np.ndarray[tuple[int], np.dtype[np.int64]], x: np.ndarray, weight: float) -> None:
        self.exact(total, x, weight)


def _deltas() -> list[Bundle]:
    """Returns BUSY deltas, as many as the floor's sum goes through."""
    found = []
    for seed in range(BUSY):
        found.append(Bundle.zeros(vector(FLOATS)))
        found[-1].vector()[:] = np.random.default_rng(seed).standard_normal(FLOATS, np.float32)
    return found


def _adding(total: PartialSum, deltas: Iterator[Bundle], times: int, weight: float = WEIGHT) -> Callable[[], float]:
    return timed(lambda: total.add(next(deltas), weight), times)
