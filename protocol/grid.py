"""The arithmetic of sums whose bits do not depend on the order of their terms.

The one idea: count in units of a fixed grid. A term weight * x is rounded once, by itself, to a whole number of 2**-32;
whole numbers are added in int64, where addition is exact, so the result shows neither the order of arrival nor the
grouping. (Float addition rounds after every term, so its result depends on the order.)

This form is called "exact". For float32 vectors it means:

    term  = the float32 product of x and exact_weight(weight), rounded half to even to a multiple of GRID
    total = the sum of the terms / GRID: int64, exact within +-LIMIT; a term that could pass LIMIT is refused
    mean  = float64(total) * (GRID / sum of the exact weights), in float64

A term is off by at most 2**-33 and half a unit in the last place of a float32 product. (float64 vectors: a float64 product.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.protocol.errors import ProtocolError

Floats: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float64]

GRID = 2.0**-32  # the unit of an exact total
LIMIT = 2.0**30  # an exact total stays within +-LIMIT: half of what int64 holds in these units, so that it never wraps
PLAIN_LIMIT = 2.0**126  # a plain total stays within +-PLAIN_LIMIT, so that it never overflows float32
WEIGHT_GRID = 2.0**-20  # weights are multiples of this, so that their sum is exact in float64 up to WEIGHT_LIMIT
WEIGHT_LIMIT = 2.0**33  # largest sum of weights
BLOCK = 32_768  # entries that are converted at a time: such temporaries stay in a core's own cache
STRETCH = 2**17  # entries that are added at a time: with fewer, numpy's calls cost more than a cache of the next level

SMALL = 2.0**19  # a term up to this (2**51 units) becomes a whole number by adding MAGIC
MAGIC = 1.5 * 2.0**52  # float64 numbers from 2**52 to 2**53 are the whole numbers, and their bits count these
OFFSET = int(np.float64(MAGIC).view(np.int64))


def exact_weight(weight: float) -> float:
    """`weight` rounded to float32, then to a multiple of 2**-20; whole numbers up to 2**24 stay as they are.

    So products with the weight are the same on every machine, and sums of weights do not depend on their order.
    Raises ProtocolError for a weight outside of [2**-20, 2**33].
    """
    if 1 <= weight <= 2**24 and weight == int(weight):
        return float(weight)
    return round(float(np.float32(plain_weight(weight))) / WEIGHT_GRID) * WEIGHT_GRID


def plain_weight(weight: float) -> float:
    """`weight` itself. Raises ProtocolError for a weight outside of [2**-20, 2**33]."""
    if not WEIGHT_GRID <= weight <= WEIGHT_LIMIT:  # NaN fails too
        raise ProtocolError(f"a contribution's weight is from 2**-20 to 2**33, not {weight!r}; scale the weights")
    return weight


def square(x: Floats) -> float:
    """The sum of squares, in one pass. Infinite or NaN if an entry is, or if a square overflows.

    A rounded sum of squares never falls below its largest term, so rounding cannot hide a large entry. Call it within
    np.errstate(all="ignore"), or numpy may warn.
    """
    if x.size <= STRETCH:
        return float(np.dot(x, x))
    return sum(float(np.dot(part, part)) for part in (x[at : at + STRETCH] for at in range(0, x.size, STRETCH)))


def bound(square: float) -> float:
    """An upper bound of any |x| whose squares sum to `square`: |x|_inf <= |x|_2. Squares of entries below 2**-60 may vanish."""
    return math.sqrt(square) * (1 + 2.0**-20) + 2.0**-60


def largest(x: npt.NDArray[Any]) -> float:
    """max |x| itself; NaN if an entry is NaN, 0 of no entries. The pass for `min` finds a stretch in a core's cache."""
    top = 0.0
    for at in range(0, x.size, STRETCH):
        part = x[at : at + STRETCH]
        high, low = float(part.max()), float(part.min())
        if math.isnan(high):
            return high
        top = max(top, high, -low)
    return top


class Adder:
    """Adds weight * x to a total, a stretch at a time, through two buffers of its own. Checks nothing: exact.Gauge does."""

    def __init__(self) -> None:
        self._products: dict[np.dtype[Any], npt.NDArray[Any]] = {}
        self._wide = np.empty(0, np.float64)
        self._counts = self._wide.view(np.int64)
        self._magic = np.array(MAGIC)  # an array, so that numpy makes none at each addition

    def exact(self, total: npt.NDArray[np.int64], x: Floats, weight: float) -> None:
        """total[n], int64 in units of GRID, += weight * x[n]. `weight` is an exact_weight.

        Scaling by 1 / GRID, a power of two, loses nothing: a product is rounded once, then once to a whole number.
        """
        products, factor = self._buffer(x), x.dtype.type(weight / GRID)
        for first in range(0, x.size, STRETCH):
            block, its = x[first : first + STRETCH], total[first : first + STRETCH]
            product, count = products[: block.size], self._counts[: block.size]
            np.multiply(block, factor, product)
            np.rint(product, product)
            np.copyto(count, product, casting="unsafe")
            np.add(its, count, its)

    def small(self, total: npt.NDArray[np.int64], x: Floats, weight: float) -> None:
        """Add as `exact` does, but faster, terms up to SMALL; leave every entry of the total OFFSET too high (mod 2**64).

        A product plus MAGIC is rounded half to even to a whole number, and MAGIC is even: so it is the same whole number.
        """
        products, factor = self._buffer(x), x.dtype.type(weight / GRID)
        for first in range(0, x.size, STRETCH):
            block, its = x[first : first + STRETCH], total[first : first + STRETCH]
            product, wide = products[: block.size], self._wide[: block.size]
            np.multiply(block, factor, product)
            np.copyto(wide, product)
            np.add(wide, self._magic, wide)
            np.add(its, self._counts[: block.size], its)

    def rows(self, total: npt.NDArray[np.int64], x: npt.NDArray[np.float32], weights: Sequence[float]) -> None:
        """total[n] += sum of weights[i] * x[i], x [clients, n]: each term as in `small`, so every entry of the total is left
        OFFSET too high for each client."""
        factors = np.array([weight / GRID for weight in weights], np.float32)[:, None]
        width = max(1, STRETCH // max(1, len(weights)))
        for first in range(0, x.shape[1], width):
            block = x[:, first : first + width]
            wide = np.multiply(block, factors).astype(np.float64)
            np.add(wide, self._magic, wide)
            its = total[first : first + width]
            np.add(its, wide.view(np.int64).sum(0), its)

    def plain(self, total: Floats, x: Floats, weight: float) -> None:
        """total[n] += weight * x[n], floats of one dtype: faster, but the last bits depend on the order of additions."""
        if weight == 1.0:
            np.add(total, x, total)
            return
        products, factor = self._buffer(x), x.dtype.type(weight)
        for first in range(0, x.size, STRETCH):
            block, its = x[first : first + STRETCH], total[first : first + STRETCH]
            product = products[: block.size]
            np.multiply(block, factor, product)
            np.add(its, product, its)

    def _buffer(self, x: Floats) -> npt.NDArray[Any]:
        size = min(x.size, STRETCH)
        if self._wide.size < size:
            self._wide = np.empty(size, np.float64)
            self._counts = self._wide.view(np.int64)
        buffer = self._products.get(x.dtype)
        if buffer is None or buffer.size < size:
            buffer = self._products[x.dtype] = np.empty(size, x.dtype)
        return buffer
