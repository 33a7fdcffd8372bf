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
from itertools import chain

import numpy as np

from shoal.protocol.compress import Coding, Packed
from shoal.protocol.errors import ProtocolError
from shoal.protocol.layout import Bundle, Bytes, Layout, aligned


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
        for change in chain.from_iterable(map(self._apart, told)):
            self.packed.unpack(change, self._told)
            with np.errstate(over="ignore"):  # a faulty peer's changes may overflow; those that `tell` makes do not
                np.add(x, self._told.vector(), out=x)
        for dtype in self.packed.plain:
            into.vector(dtype)[...] = self._told.vector(dtype)

    def _apart(self, told: Bytes) -> list[Bundle]:
        nbytes = self.packed.layout.nbytes
        starts = range(0, told.nbytes, aligned(nbytes))
        if not starts or starts[-1] + nbytes != told.nbytes:
            raise ProtocolError(f"{told.nbytes} bytes of changes: expected one or more changes of {nbytes} bytes")
        return [Bundle(self.packed.layout, told[first : first + nbytes]) for first in starts]


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
