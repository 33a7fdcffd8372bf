"""The worker of federated analytics: a client's tallies of its own numbers. No number itself leaves the client."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from shoal.envs.population import Population
from shoal.protocol.layout import Bundle
from shoal.protocol.ordering import keys_of
from shoal.protocol.work import Task, Work

DIGITS = 4  # bytes of a float32 number, one a step


class Tallying:
    """Tallies of one array of a client's examples, whose rows are flattened to [rows, width].

    query: "sum", "histogram" or "quantiles". of: "x" or "y". low, high, bins: of the histogram; a number below low is in its
    first bin, one from high on in its last. Raises ValueError for NaN, which has no place in an order, and for an infinity.
    """

    def __init__(self, population: Population, query: str, of: str, low: float, high: float, bins: int) -> None:
        self.population, self.query, self.of = population, query, of
        self.low, self.high, self.bins = low, high, bins

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        numbers = rows_of(getattr(self.population.examples(client), self.of))
        if not np.isfinite(numbers).all():
            raise ValueError(f"client {client}: {self.of} holds NaN or an infinity")
        tallies = Bundle.zeros(weights.layout)
        tallies["count"][...] = len(numbers)
        match self.query:
            case "sum":
                tallies["total"][...] = [math.fsum(column) for column in numbers.T]
            case "histogram":
                for column, into in zip(numbers.T, tallies["histogram"], strict=True):
                    into[...] = self._binned(column)
            case _:
                _count(keys_of(numbers), weights["prefix"].astype(np.uint64), task.version, tallies["counts"])
        return Work(tallies, 1.0)

    def _binned(self, column: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        place = np.floor((column - self.low) / (self.high - self.low) * self.bins)
        inside = np.clip(np.where(column < self.low, -1, np.where(column >= self.high, self.bins, place)), -1, self.bins)
        return np.bincount(inside.astype(np.int64) + 1, minlength=self.bins + 2)


def _count(keys: npt.NDArray[np.uint32], prefix: npt.NDArray[np.uint64], step: int, counts: npt.NDArray[np.float64]) -> None:
    """Count, for each column and quantile, the keys that begin with the bytes found so far, by their next byte."""
    begins, digit = keys.astype(np.uint64) >> np.uint64(8 * (DIGITS - step)), (keys >> np.uint32(8 * (DIGITS - 1 - step))) & 255
    for column in range(keys.shape[1]):
        for at, found in enumerate(prefix[column]):
            counts[column, at] = np.bincount(digit[begins[:, column] == found, column], minlength=256)


def rows_of(array: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """An array [n, ...] of numbers as [n, width], float64."""
    found = np.asarray(array)
    return found.reshape(len(found), -1).astype(np.float64)
