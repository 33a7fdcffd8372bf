"""Count, mean and sum of squared deviations of many numbers, which merge exactly: the statistics of a normaliser.

The one idea: two sets of numbers have together what a pass over both would find (Chan, Golub and LeVeque 1983, equation 2.1).
So each trajectory brings its own moments, and the order in which trajectories are merged is the only thing that rounding can
show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.envs.spaces import Kept

Doubles = npt.NDArray[np.float64]
PARTS = ("count", "mean", "m2")


@dataclass(frozen=True, slots=True)
class Moments:
    """count: how many numbers, float64 []. mean, m2: their mean and the sum of the squares of their distances from it, float64
    [*shape]. Of no numbers, all three are 0."""

    count: Doubles
    mean: Doubles
    m2: Doubles

    @classmethod
    def of(cls, values: npt.NDArray[Any], shape: tuple[int, ...]) -> Moments:
        """The moments of values [N, *shape], in float64, by two passes."""
        rows = np.asarray(values, np.float64).reshape(-1, *shape)
        if not len(rows):
            return cls.none(shape)
        mean = rows.mean(axis=0)
        return cls(np.float64(len(rows)) * np.ones(()), np.asarray(mean), np.asarray(((rows - mean) ** 2).sum(axis=0)))

    @classmethod
    def none(cls, shape: tuple[int, ...]) -> Moments:
        return cls(np.zeros(()), np.zeros(shape), np.zeros(shape))

    def merged(self, other: Moments) -> Moments:
        """The moments of both sets of numbers."""
        count = self.count + other.count
        if not count:
            return self
        apart, share = other.mean - self.mean, other.count / count
        return Moments(count, self.mean + apart * share, self.m2 + other.m2 + apart * apart * (self.count * share))

    @property
    def variance(self) -> Doubles:
        """The variance [*shape], over all numbers; 1 of no number, so that nothing is scaled yet."""
        return self.m2 / self.count if self.count else np.ones_like(self.m2)

    def arrays(self, prefix: str) -> dict[str, Doubles]:
        """Name -> array, as a bundle holds them."""
        return {f"{prefix}{part}": getattr(self, part) for part in PARTS}

    @classmethod
    def read(cls, arrays: Any, prefix: str) -> Moments:
        """The moments that `arrays` holds under these names."""
        return cls(*(np.array(arrays[f"{prefix}{part}"], np.float64) for part in PARTS))


def kept(prefix: str, shape: tuple[int, ...]) -> Kept:
    """The arrays of `Moments.arrays`: name -> (dtype, shape)."""
    return {f"{prefix}count": ("f8", ()), f"{prefix}mean": ("f8", shape), f"{prefix}m2": ("f8", shape)}
