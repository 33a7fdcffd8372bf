"""Codecs that send some entries only: the largest, or random ones.

The one idea: every machine picks the same entries: of equal entries the first, and random entries from a seed, by arithmetic
that no library may change. So positions that the other end can work out are not sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.protocol.errors import ProtocolError
from shoal.protocol.layout import Bundle
from shoal.protocol.rounding import Arrays, Vector, check

Indices: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TopK:
    """The k entries farthest from 0 and their positions; of equal entries the first, so that every machine sends the same."""

    share: float = 0.1
    contracts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(0 < self.share <= 1, "share", self.share, "above 0 to 1")

    def arrays(self, n: int) -> Arrays:
        k = kept(self.share, n)
        return {"values": ("f4", (k,)), "indices": ("i4" if n < 2**31 else "i8", (k,))}

    def encode(self, x: Vector, rng: np.random.Generator, out: Bundle) -> None:
        out["indices"][...] = where = largest(x, kept(self.share, x.size))
        out["values"][...] = x[where]

    def decode(self, sent: Bundle, x: Vector) -> None:
        where = sent["indices"]
        if where.size and not (where[0] >= 0 and where[-1] < x.size and (where[1:] > where[:-1]).all()):
            raise ProtocolError(f"positions of kept entries rise from 0 to below {x.size}; this bundle has others")
        x.fill(0)
        x[where] = sent["values"]


@dataclass(frozen=True, slots=True)
class RandomK:
    """k entries drawn at random. Their positions follow from a seed, and only the seed travels.

    scaled: True multiplies them by n / k, so that the mean is x.
    """

    share: float = 0.1
    scaled: bool = True

    def __post_init__(self) -> None:
        check(0 < self.share <= 1, "share", self.share, "above 0 to 1")

    @property
    def contracts(self) -> bool:
        return not self.scaled

    def arrays(self, n: int) -> Arrays:
        return {"values": ("f4", (kept(self.share, n),)), "seed": ("i8", ())}

    def encode(self, x: Vector, rng: np.random.Generator, out: Bundle) -> None:
        out["seed"][...] = seed = rng.integers(-(2**63), 2**63 - 1, endpoint=True)
        out["values"][...] = x[subset(int(seed), x.size, kept(self.share, x.size))]

    def decode(self, sent: Bundle, x: Vector) -> None:
        values = sent["values"]
        factor = np.float32(x.size / max(1, values.size)) if self.scaled else np.float32(1)
        x.fill(0)
        x[subset(int(sent["seed"]), x.size, values.size)] = values * factor


def kept(share: float, n: int) -> int:
    """k: `share` of n entries, rounded to the nearest whole number; at least 1, unless n is 0."""
    return min(n, max(1, round(share * n)))


def largest(x: Vector, k: int) -> Indices:
    """Positions of the k largest |x|, rising; of equal entries the first."""
    if not k:
        return np.empty(0, np.int64)
    size = np.abs(x)
    edge = np.partition(size, x.size - k)[x.size - k]
    above = np.flatnonzero(size > edge)
    return np.sort(np.concatenate([above, np.flatnonzero(size == edge)[: k - above.size]]))


def subset(seed: int, n: int, k: int) -> Indices:
    """k of n positions, rising, every subset equally likely: the first k different draws of a stream, or all but n - k of them.

    The draws use Philox's raw bits, which numpy promises never to change; numpy promises no such thing of methods on top.
    """
    few = min(k, n - k)
    stream, drawn = np.random.Philox(key=seed % 2**64), np.empty(0, np.int64)
    first: Indices = np.empty(0, np.int64)
    while first.size < few:
        drawn = np.concatenate([drawn, _below(n, stream.random_raw(few + few // 2 + 16))])
        first = _firsts(drawn, n)
    chosen = np.zeros(n, np.bool_)
    chosen[drawn[first[:few]]] = True
    return np.flatnonzero(chosen if few == k else ~chosen)


def _firsts(drawn: Indices, n: int) -> Indices:
    """Positions in `drawn` (numbers below n) of each number's first occurrence, rising. (numpy keeps the last assignment.)"""
    order, first = np.arange(drawn.size), np.empty(n, np.int64)
    first[drawn[::-1]] = order[::-1]
    return np.flatnonzero(first[drawn] == order)


def _below(n: int, raw: npt.NDArray[np.uint64]) -> Indices:
    """Whole numbers from 0 to below n, made of 53 random bits each."""
    return ((raw >> np.uint64(11)) * (2.0**-53) * n).astype(np.int64)
