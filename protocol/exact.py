"""Sums of bundles, which an actor or a relay sends instead of each client's delta.

The one idea: a weighted sum over clients is itself a bundle, of a layout that follows from the model's: an int64 vector
for each dtype, in the "exact" form of grid.py. So sums of sums are sums, bit for bit, and the grouping leaves no trace.

Arrays of a dtype of one byte (b1, u1, i1) are summed as values, because differences would not fit: aggregators take the
majority of booleans and the rounded mean of whole numbers. Arrays of all other dtypes are differences.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.protocol import grid
from shoal.protocol.errors import ProtocolError
from shoal.protocol.grid import (
    BLOCK,
    GRID,
    LIMIT,
    OFFSET,
    PLAIN_LIMIT,
    SMALL,
    STRETCH,
    WEIGHT_GRID,
    WEIGHT_LIMIT,
    Adder,
    Floats,
)
from shoal.protocol.layout import DTYPES, Bundle, Layout

PLAIN_TOTALS: Mapping[str, str] = {
    **dict.fromkeys(("f4", "f2", "bf16"), "f4"),
    **dict.fromkeys(("f8", "b1", "u1", "i1", "i2", "i4", "i8"), "f8"),
}
"""The dtypes that have a mean -> the dtype of their total if the sum is not exact."""

VALUES = ("b1", "u1", "i1")
"""The dtypes whose arrays in a contribution are a client's values, not its differences from the weights."""


FLOATS = ("f4", "f2", "bf16", "f8")


def averaged(layout: Layout) -> dict[str, int]:
    """The dtypes of a layout that have a mean -> their number of entries."""
    return {
        dtype: (last - first) // DTYPES[dtype].itemsize
        for dtype, (first, last) in layout.segments.items()
        if dtype in PLAIN_TOTALS
    }


def summed_layout(layout: Layout, exact: bool = True) -> Layout:
    """The layout of sums over bundles of `layout`: a flat array "sum/f4" for all its float32 entries, "sum/i8" ...

    exact: True for int64, in units of grid.GRID; False for float32 of f4, f2 and bf16, and float64 of the others.
    """
    if (found := layout.made.get(exact)) is None:  # an actor makes a sum a task
        rows = averaged(layout).items()
        sizes = {f"sum/{dtype}": ("i8" if exact else PLAIN_TOTALS[dtype], (size,)) for dtype, size in rows}
        found = layout.made[exact] = Layout.of(sizes)
    return found


def floats(vector: npt.NDArray[Any], dtype: str) -> Floats:
    """Entries of a wire dtype as floats: float32 for f4 (a view), f2 and bf16; float64 for the others (for f8 a view)."""
    match dtype:
        case "f4" | "f8":
            return vector
        case "f2":
            return vector.astype(np.float32)
        case "bf16":  # the upper half of a float32
            return (vector.astype(np.uint32) << 16).view(np.float32)
        case _:
            return vector.astype(np.float64)


AS_THEY_ARE = ("f4", "f8")
"""The dtypes whose entries are read and added where they lie. A norm covers these dtypes alone."""


def entries(bundle: Bundle, dtype: str) -> Iterator[tuple[int, Floats]]:
    """The entries of one dtype as floats, piece by piece: (index of a piece's first entry, flat piece); f4 and f8 as views."""
    return bundle.blocks(dtype) if dtype in AS_THEY_ARE else _converted(bundle, dtype)


def _converted(bundle: Bundle, dtype: str) -> Iterator[tuple[int, Floats]]:
    for first, piece in bundle.blocks(dtype):
        for at in range(0, piece.size, BLOCK):
            yield first + at, floats(piece[at : at + BLOCK], dtype)


def squares(bundle: Bundle, dtypes: Iterable[str] = AS_THEY_ARE) -> float:
    """The sum of squares of all entries of these dtypes, in one pass. Not finite if an entry, or a square, is not finite."""
    total = 0.0
    with np.errstate(all="ignore"):
        for dtype in dtypes:
            for _, x in entries(bundle, dtype):
                total += grid.square(x)
    return total


Extent: TypeAlias = Callable[[], float]


class Gauge:
    """The weight in a sum and a bound on its entries: decides, before a term is added, whether it may be.

    The cheap bound |x|_2 serves while it suffices; if it does not, the entries themselves are looked at.
    extent, an argument of the methods: () -> largest |entry| of the sum now. (The gauge does not keep it: a sum that was held
    by its own gauge would keep its memory until the garbage collector ran.)
    All methods raise ProtocolError, with nothing counted, for a term that must not be added.
    whole: False as long as every term lacked the arrays at each dtype's end, as those of `narrow` do: such a term is 0 there.

    shares: clients that the sum must have room for. A client's term may have its share of the range of entries and weights, and
    no more, so that no client leaves another without room.
    """

    def __init__(self, layout: Layout, exact: bool) -> None:
        self.layout, self.exact = layout, exact
        self.sums, self.narrow = summed_layout(layout, exact), layout.moving
        self.narrow_sums = summed_layout(self.narrow, exact)
        self.whole = False
        self.dtypes = tuple(averaged(layout))
        self.converted = tuple(dtype for dtype in self.dtypes if dtype not in AS_THEY_ARE)
        self.limit = LIMIT if exact else PLAIN_LIMIT
        self.shares = 1
        self.weight = 0.0
        self.reach = 0.0

    def clear(self) -> None:
        self.weight = self.reach = 0.0
        self.whole = False

    def term(self, bundle: Bundle, weight: float, norm: float | None, extent: Extent) -> tuple[float, float]:
        """Count one client's bundle in. Returns the weight to use, and a bound on |weight * entry|.

        norm: sqrt(squares(bundle)), if the caller knows it: that spares a pass. None: not known.
        """
        if (its := bundle.layout).digest not in (self.layout.digest, self.narrow.digest) and self.layout.begins_with(its):
            self.narrow, self.narrow_sums = its, summed_layout(its, self.exact)
            self.whole |= self.weight > 0  # the terms before may have more arrays
        (self.narrow if its.digest == self.narrow.digest else self.layout).expect(its)
        if norm is None:
            square = squares(bundle, self.dtypes)
        else:
            square = norm * norm + (squares(bundle, self.converted) if self.converted else 0.0)
        return self.known(bundle, weight, square, extent)

    def known(self, bundle: Bundle, weight: float, square: float, extent: Extent) -> tuple[float, float]:
        """Count one client's bundle of a known layout in, as `term` does. square: squares(bundle, dtypes)."""
        weight = grid.exact_weight(weight) if self.exact else grid.plain_weight(weight)
        reach = weight * grid.bound(square)
        if not max(self.reach + reach, self.shares * reach) <= self.limit:
            reach = weight * _largest(bundle, self.dtypes)
        self._count(weight, reach, extent, 1)
        self.whole |= bundle.layout.digest == self.layout.digest
        return weight, reach

    def partial(self, bundle: Bundle, weight: float, extent: Extent, clients: int = 1) -> None:
        """Count a partial sum over so many clients in: a bundle of `summed_layout` and the sum of its weights, as a PartialSum
        has them."""
        narrow = bundle.layout.digest == self.narrow_sums.digest != self.sums.digest
        (self.narrow_sums if narrow else self.sums).expect(bundle.layout)
        if self.exact and not (WEIGHT_GRID <= weight <= WEIGHT_LIMIT and (weight / WEIGHT_GRID).is_integer()):
            raise ProtocolError(f"an exact sum of weights is a multiple of 2**-20 up to 2**33, not {weight!r}")
        reach = math.inf if self.exact else grid.bound(squares(bundle, self.sums.segments))
        if not max(self.reach + reach, self.shares / clients * reach) <= self.limit:
            reach = _largest(bundle, self.sums.segments) * (GRID if self.exact else 1.0)
        self._count(grid.plain_weight(weight), reach, extent, clients)
        self.whole |= not narrow

    def several(self, weights: Sequence[float], squared: npt.NDArray[np.float32], most: float) -> list[float] | None:
        """Count several clients' whole bundles in and return the weights to use, if by the cheap bound the sum has room for
        them and none has a weighted entry above `most`. None, with nothing counted: each is to be looked at by itself.
        squared: the sum of squares of each, [clients]. Raises ProtocolError for a weight out of range."""
        if self.shares != 1:
            return None
        used = [grid.exact_weight(one) if self.exact else grid.plain_weight(one) for one in weights]
        reaches = (np.sqrt(squared.astype(np.float64)) * (1 + 2.0**-20) + 2.0**-60) * used  # grid.bound
        reach, weight = self.reach + float(reaches.sum()), self.weight
        for one in used:
            weight += one
        if not (reach <= self.limit and weight <= WEIGHT_LIMIT and float(reaches.max(initial=0.0)) <= most):
            return None
        self.reach, self.weight, self.whole = reach, weight, self.whole or bool(used)
        return used

    def count(self, weight: float, reach: float, extent: Extent) -> None:
        """Count in one client's whole bundle that was added. reach: bound on |weight * entry|."""
        self._count(weight, reach, extent, 1)
        self.whole = True

    def _count(self, weight: float, reach: float, extent: Extent, clients: int) -> None:
        share = min(1.0, clients / self.shares)
        if not (reach <= share * self.limit and weight <= share * WEIGHT_LIMIT) and share < 1:
            raise ProtocolError(
                f"a contribution of weight {weight:g} whose weighted entries reach {reach:.3g} has more than its share of what "
                f"is summed, {share:.3g} of 2**33 and of {self.limit:.3g}: clip the contributions, or scale their weights down"
            )
        before = self.reach if self.reach + reach <= self.limit else extent()
        if not before + reach <= self.limit:
            raise ProtocolError(
                f"a contribution whose weighted entries reach {reach:.3g} on top of a sum that reaches {before:.3g} may pass "
                f"{self.limit:.3g}, the most that is summed; clip the contributions, or scale their weights down"
            )
        if self.weight + weight > WEIGHT_LIMIT:
            raise ProtocolError(f"weights of {self.weight:g} and {weight:g} sum to more than 2**33; scale the weights down")
        self.weight += weight
        self.reach = before + reach


def _largest(bundle: Bundle, dtypes: Iterable[str]) -> float:
    """The largest |x| of these dtypes; bfloat16, which numpy cannot compare, as floats. Raises ProtocolError for NaN."""
    parts = (entries(bundle, dtype) if dtype == "bf16" else bundle.blocks(dtype) for dtype in dtypes)
    top = [grid.largest(x) for part in parts for _, x in part]
    if not all(map(math.isfinite, top)):
        name = unfinite(bundle) or "an array"  # shared memory may have changed since
        raise ProtocolError(f"{name!a} of a contribution holds NaN or an infinity")
    return max(top, default=0.0)


def unfinite(bundle: Bundle) -> str:
    """The name of the first array that holds NaN or an infinity; "" if none does. Costs one pass over a bundle without any."""
    kinds = {place.name: place.dtype for place in bundle.layout.places if place.dtype in FLOATS}
    if math.isfinite(squares(bundle, {*kinds.values()})):
        return ""
    finite = {name: all(np.isfinite(floats(x, its)).all() for _, x in bundle.blocks_of(name)) for name, its in kinds.items()}
    return next((name for name, whole in finite.items() if not whole), "")


class Sum:
    """The sum of weight * bundle over clients, for bundles of `layout`, in totals that its owner provides.

    exact: True for the same bits in any order and grouping; False for plain floats, faster: the last bits depend on the order.
    adder: does the additions; None: numpy does.
    totals: dtype -> flat array: int64 in units of GRID if exact, else floats.
    """

    def __init__(self, layout: Layout, exact: bool = True, adder: Adder | None = None) -> None:
        self.gauge = Gauge(layout, exact)
        self._totals: dict[str, npt.NDArray[Any]] = {}
        self._adder = adder or Adder()
        self._above = 0  # every entry of the totals is too high by this, mod 2**64

    @property
    def weight(self) -> float:
        """The sum of the weights as they were used; it travels beside the bundle, as Work.weight."""
        return self.gauge.weight

    @property
    def totals(self) -> Mapping[str, npt.NDArray[Any]]:
        self._settle()
        return self._totals

    def add(self, bundle: Bundle, weight: float, norm: float | None = None) -> None:
        """Add one client's bundle. Raises ProtocolError, with nothing added, for another layout, NaN, or too large an entry.

        norm: sqrt(squares(bundle)), if the caller knows it; None: not known.
        """
        weight, reach = self.gauge.term(bundle, weight, norm, self._extent)
        add = self._way(reach if bundle.layout.digest == self.gauge.layout.digest else math.inf)
        for dtype, total in self._totals.items():
            for first, x in entries(bundle, dtype):
                add(total if x.size == total.size else total[first : first + x.size], x, weight)

    def absorb(self, local: npt.NDArray[np.float32], start: npt.NDArray[np.float32], weight: float) -> None:
        """Add one client's delta, local - start, as it is made, and write `start` to `local`: one pass over memory. The sum is
        exact, and its layout has float32 entries alone. Raises ProtocolError as `add` does, and the sum is of no use then."""
        weight = grid.exact_weight(weight)
        total, reach = self._totals["f4"], 0.0
        room = np.empty(min(STRETCH, local.size), np.float32)
        for first in range(0, local.size, STRETCH):
            ours, theirs = local[first : first + STRETCH], start[first : first + STRETCH]
            its = total[first : first + STRETCH]
            with np.errstate(all="ignore"):  # of a client whose weights diverge, which is refused below
                delta = np.subtract(ours, theirs, out=room[: ours.size])
                most = weight * grid.bound(grid.square(delta))
            if most <= SMALL:
                self._adder.small(its, delta, weight)
            else:
                most = weight * self._sound(delta, first)
                if most <= self.gauge.limit:  # else it is refused below
                    self._adder.exact(its, delta, weight)
                whole = its.view(np.uint64)
                np.add(whole, np.uint64(OFFSET % 2**64), whole)
            reach = max(reach, most)
            np.copyto(ours, theirs)
        self._above += OFFSET
        self.gauge.count(weight, reach, self._extent)

    def _sound(self, delta: npt.NDArray[np.float32], first: int) -> float:
        """The largest |entry| of a part of a delta that begins at this entry. Raises ProtocolError if one is not finite."""
        if math.isfinite(top := grid.largest(delta)):
            return top
        at = first + int(np.flatnonzero(~np.isfinite(delta))[0])
        ends = np.cumsum([math.prod(place.shape) for place in self.gauge.layout.places])
        name = self.gauge.layout.places[int(np.searchsorted(ends, at, "right"))].name
        raise ProtocolError(f"{name!a} of a contribution holds NaN or an infinity")

    def add_rows(self, rows: npt.NDArray[np.float32], weights: Sequence[float]) -> Mapping[int, ProtocolError]:
        """Add the bundles of several clients at once, with the bits that `add` gives one after the other. rows: their float32
        entries, [clients, entries], C-contiguous; the layout has no other arrays. Returns row -> why it must not be added; if
        there is such a row, nothing is added, and the sum is of no use any more."""
        total = self._totals["f4"]
        with np.errstate(all="ignore"):
            squared = np.einsum("ij,ij->i", rows, rows)
        with contextlib.suppress(ProtocolError):  # a weight out of range, of which is told below
            if self.gauge.exact and (counted := self.gauge.several(weights, squared, SMALL)) is not None:
                self._above += len(rows) * OFFSET
                self._adder.rows(total, rows, counted)
                return {}
        used, reaches, faults = list[float](), list[float](), dict[int, ProtocolError]()
        for at, (row, weight, square) in enumerate(zip(rows, weights, squared.tolist(), strict=True)):
            try:
                term = self.gauge.known(Bundle.of_buffer(self.gauge.layout, row), weight, square, self._extent)
            except ProtocolError as fault:
                faults[at] = fault
            else:
                used.append(term[0])
                reaches.append(term[1])
        if faults:
            return faults
        for row, weight, reach in zip(rows, used, reaches, strict=True):
            self._way(reach)(total, row, weight)
        return {}

    def merge(self, bundle: Bundle, weight: float, clients: int = 1) -> None:
        """Add a partial sum's bundle and weight, over so many clients. Raises as `add` does."""
        self.gauge.partial(bundle, weight, self._extent, clients)
        for dtype, total in self._totals.items():
            for first, its in bundle.blocks_of(f"sum/{dtype}") if f"sum/{dtype}" in bundle else ():
                part = total[first : first + its.size]
                np.add(part, its, part)

    def clear(self) -> None:
        self.gauge.clear()
        self._above = 0
        for total in self._totals.values():
            total.fill(0)

    def _way(self, reach: float) -> Callable[[npt.NDArray[Any], Floats, float], None]:
        """The fastest addition for terms of at most `reach`."""
        if not self.gauge.exact:
            return self._adder.plain
        if reach > SMALL:
            return self._adder.exact
        self._above += OFFSET
        return self._adder.small

    def _settle(self) -> None:
        if above := self._above % 2**64:
            for total in self._totals.values():
                whole = total.view(np.uint64)
                np.subtract(whole, np.uint64(above), whole)
        self._above = 0

    def _extent(self) -> float:
        return max(map(grid.largest, self.totals.values()), default=0.0) * (GRID if self.gauge.exact else 1.0)


class PartialSum(Sum):
    """A sum that travels: its totals lie in a bundle of their own. Memory: 8 bytes an entry if exact, and 1.5 MB of buffers."""

    def __init__(self, layout: Layout, exact: bool = True, adder: Adder | None = None) -> None:
        super().__init__(layout, exact, adder)
        self._bundle = Bundle.zeros(self.gauge.sums)
        self._totals = {dtype: self._bundle[f"sum/{dtype}"] for dtype in self.gauge.dtypes}

    def bundle(self) -> Bundle:
        """The sum as it travels, without the arrays that no term had. Perhaps no copy: the next `add` or `clear` may change
        it."""
        self._settle()
        if self.gauge.whole or self.gauge.narrow_sums.digest == self.gauge.sums.digest:
            return self._bundle
        narrow = Bundle.zeros(self.gauge.narrow_sums)
        for name, total in narrow.items():
            total[...] = self._bundle[name][: total.size]
        return narrow
