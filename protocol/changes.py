"""Weights in fewer bytes: the change since the version that their receiver holds.

The one idea: both ends add the same rounded change to the same bits, so that both go on holding the same bits; and the part
that a change rounds off or leaves out is in the next difference by itself. That is error feedback without a memory of its
own: held += C(wanted - held), which is EF21-P (Gruntkowska et al. 2023); the residual that DoubleSqueeze keeps at the server
(Tang et al. 2019) is wanted - held.

For a codec C with |C(x) - x| <= q |x|, q < 1, and weights that move by at most s a version: the distance e between held and
wanted follows e' <= q (e + s), so e stays below q s / (1 - q). That takes a codec that contracts: it rounds to the nearest,
and does not scale random entries.

A codec without loss is not offered: on `digits` the bits in which two versions differ deflate to two thirds of the weights,
while float16 takes half and is off by 2**-11 of the change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np

from shoal.protocol.compress import Coding, Packed
from shoal.protocol.errors import ProtocolError
from shoal.protocol.layout import DTYPES, Bundle, Bytes, Layout, aligned


class Following(Protocol):
    """The changes of weights as an actor takes them."""

    def follow(self, held: Bundle, told: Iterable[Bytes], into: Bundle) -> None: ...


@dataclass(frozen=True, slots=True)
class First:
    """Changes that hold the first entries of each dtype as they are; all other entries never change. entries: pairs (dtype,
    number of entries), in the layout's order of dtypes."""

    entries: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, layout: Layout) -> First:
        """Changes that are bundles of this layout."""
        return cls(tuple((dtype, (end - start) // DTYPES[dtype].itemsize) for dtype, (start, end) in layout.segments.items()))

    def row(self) -> list[Any]:
        return ["first", [list(pair) for pair in self.entries]]

    @classmethod
    def from_row(cls, row: Any) -> First:
        """The changes that a peer's row describes. Raises ProtocolError."""
        match row:
            case ["first", list() as pairs]:
                entries = [(dtype, n) for dtype, n in _pairs(pairs) if dtype in DTYPES and type(n) is int and 0 <= n < 2**48]
                if len(dict(entries)) == len(pairs):
                    return cls(tuple(entries))
        raise ProtocolError("expected ['first', pairs of a dtype and its number of entries, each dtype once]")


def _pairs(rows: Sequence[Any]) -> list[tuple[Any, Any]]:
    return [(row[0], row[1]) for row in rows if type(row) is list and len(row) == 2 and type(row[0]) is str]


def agreed(row: Any) -> Coding | First:
    """The form of changes that a peer's row describes. Raises ProtocolError."""
    return First.from_row(row) if type(row) is list and row[:1] == ["first"] else Coding.from_row(row)


def following(coding: Coding | First, layout: Layout) -> Following:
    """The changes of weights of one layout. Raises ProtocolError if they do not fit the layout."""
    return FirstEntries(coding, layout) if isinstance(coding, First) else Changes(coding, layout)


class FirstEntries:
    """Changes that replace the first entries of each dtype of weights of one layout. Used by one thread."""

    def __init__(self, first: First, layout: Layout) -> None:
        has = dict(First.of(layout).entries)
        if odd := [f"{n} of {dtype}" for dtype, n in first.entries if n > has.get(dtype, -1)]:
            raise ProtocolError(f"changes hold {', '.join(odd)} entries, more than the weights have")
        self.layout = Layout.of({dtype: (dtype, (n,)) for dtype, n in first.entries})

    def follow(self, held: Bundle, told: Iterable[Bytes], into: Bundle) -> None:
        """Write `held`, with the entries of the last change in `told`, to `into`. Raises ProtocolError for bytes that are no
        changes of this form; `into` then holds nothing of use."""
        np.copyto(into.data, held.data)
        for change in [change for buffer in told for change in _apart(buffer, self.layout)][-1:]:
            for dtype in self.layout.segments:
                new = change.vector(dtype)
                into.vector(dtype)[: new.size] = new


class Changes:
    """Changes of weights of one layout: float32 entries go through the codec, each other dtype as it is. Used by one thread.

    Several changes follow each other in one buffer, each on a multiple of 64 bytes, so that the last few are such a buffer too.
    """

    def __init__(self, coding: Coding, layout: Layout) -> None:
        self.coding = coding
        self.packed = Packed(coding.codec(feedback=True), layout)
        self._told = Bundle.zeros(layout)

    def tell(self, wanted: Bundle, held: Bundle, rng: np.random.Generator) -> Bundle:
        """C(wanted - held). Raises ProtocolError for entries that are not finite, or that the codec cannot hold."""
        with np.errstate(all="ignore"):  # `pack` finds overflows
            np.subtract(wanted.vector(), held.vector(), out=self._told.vector())
        for dtype in self.packed.plain:
            self._told.vector(dtype)[...] = wanted.vector(dtype)
        return self.packed.pack(self._told, rng)

    def follow(self, held: Bundle, told: Iterable[Bytes], into: Bundle) -> None:
        """Write held + every change in `told`, in order, to `into`: the same bits on every machine. Raises ProtocolError for
        changes that `tell` does not make; `into` then holds nothing of use."""
        np.copyto(into.data, held.data)
        x = into.vector()
        for change in chain.from_iterable(_apart(buffer, self.packed.layout) for buffer in told):
            self.packed.unpack(change, self._told)
            with np.errstate(over="ignore"):  # a faulty peer's changes may overflow; those that `tell` makes do not
                np.add(x, self._told.vector(), out=x)
        for dtype in self.packed.plain:
            into.vector(dtype)[...] = self._told.vector(dtype)


def _apart(told: Bytes, layout: Layout) -> list[Bundle]:
    """The changes in one buffer, each a bundle of this layout."""
    nbytes = layout.nbytes
    starts = range(0, told.nbytes, max(1, aligned(nbytes)))
    if not starts or starts[-1] + nbytes != told.nbytes:
        raise ProtocolError(f"{told.nbytes} bytes of changes: expected one or more changes of {nbytes} bytes")
    return [Bundle(layout, told[first : first + nbytes]) for first in starts]


def joined(changes: Sequence[Bundle]) -> Bytes:
    """A buffer of several changes, as `Changes.follow` takes it."""
    size = aligned(changes[0].data.nbytes)
    buffer = np.zeros(size * (len(changes) - 1) + changes[0].data.nbytes, np.uint8)
    for at, change in enumerate(changes):
        buffer[at * size : at * size + change.data.nbytes] = change.data
    return buffer


def last(told: Bytes, change: Bundle, count: int) -> Bytes:
    """The last `count` of joined changes, each as long as `change`; a view."""
    return told[told.nbytes - aligned(change.data.nbytes) * (count - 1) - change.data.nbytes :]
