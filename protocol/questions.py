"""The memory and the packets by which an actor has another process of its machine compute its network.

The one idea: observations and answers lie in memory that both processes map, and a packet of a few numbers says whose turn it
is. A place of the memory holds one question and its answer, so an actor has as many questions under way as it has places.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import msgpack
import numpy as np
import numpy.typing as npt

from shoal.protocol.errors import ProtocolError
from shoal.protocol.layout import ALIGNMENT, Bundle, Bytes, Layout

Array = npt.NDArray[Any]
Kept: TypeAlias = Mapping[str, tuple[str, tuple[int, ...]]]
"""Arrays of a policy's state: name -> (dtype, shape of one entry)."""

PACKET = 1 << 17  # bytes of a packet, at most: a HELLO names every array of the weights
FORM = struct.Struct("<BBBxIqq")
HELLO, QUESTION, WEIGHTS, ANSWER, LACKS, FAILED = range(1, 7)
"""Kinds of packets. From an actor: HELLO, with its memory; QUESTION; WEIGHTS, which lie in its memory now. To an actor: ANSWER;
LACKS, no weights of this version are here, so the question must come again after WEIGHTS; FAILED, the network raised."""
ALONE = 1  # a QUESTION's mark: it is computed in a batch of its own, so that its bits depend on nobody's company


class Packet(NamedTuple):
    """place: of the memory. mark: ALONE or 0. rows: observations. number: the question's, never used again by this actor.
    version: of the weights that the actor asks for, or that the answer was made with."""

    kind: int
    place: int = 0
    mark: int = 0
    rows: int = 0
    number: int = 0
    version: int = 0

    def packed(self) -> bytes:
        return FORM.pack(*self)

    @classmethod
    def read(cls, data: bytes) -> Packet:
        """Raises ProtocolError for bytes that are no packet."""
        if len(data) != FORM.size:
            raise ProtocolError(f"a packet of a question has {FORM.size} bytes, not {len(data)}")
        return cls(*FORM.unpack(data))


class Shape(NamedTuple):
    """The sizes that both ends must know. seen: dtype and shape of one observation (`Spaces.record`). memory: of the policy's
    state. width: numbers of the network for one observation. rows: observations of one question, at most. places: questions
    under way, at most. weights: layout of the weights."""

    seen: tuple[np.dtype[Any], tuple[int, ...]]
    memory: Kept
    width: int
    rows: int
    places: int
    weights: Layout

    def place(self) -> Layout:
        """The arrays of one place."""
        dtype, shape = self.seen
        before = {f"before/{name}": (its, (self.rows, *one)) for name, (its, one) in self.memory.items()}
        after = {f"after/{name}": (its, (self.rows, *one)) for name, (its, one) in self.memory.items()}
        nbytes = self.rows * dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        return Layout.of({"seen": ("u1", (nbytes,)), "numbers": ("f4", (self.rows, self.width)), **before, **after})

    @property
    def stride(self) -> int:
        """Bytes from one place to the next."""
        return -(-self.place().nbytes // ALIGNMENT) * ALIGNMENT

    @property
    def nbytes(self) -> int:
        """Bytes of the memory: the places, then the weights."""
        return self.stride * self.places + self.weights.nbytes


class Places:
    """The memory of one actor as arrays, uint8 [shape.nbytes]."""

    def __init__(self, shape: Shape, data: Bytes) -> None:
        layout, stride = shape.place(), shape.stride
        (dtype, one), self.rows, self.places = shape.seen, shape.rows, shape.places
        bundles = [Bundle(layout, data[at * stride : at * stride + layout.nbytes]) for at in range(shape.places)]
        self.seen: list[Array] = [each["seen"].view(dtype).reshape(shape.rows, *one) for each in bundles]
        self.numbers: list[npt.NDArray[np.float32]] = [each["numbers"] for each in bundles]
        self.before: list[dict[str, Array]] = [{name: each[f"before/{name}"] for name in shape.memory} for each in bundles]
        self.after: list[dict[str, Array]] = [{name: each[f"after/{name}"] for name in shape.memory} for each in bundles]
        self.weights = Bundle(shape.weights, data[stride * shape.places : shape.nbytes])


def hello(handle: tuple[int, ...], shape: Shape) -> bytes:
    """The first packet of an actor. Raises ProtocolError if the weights have too many arrays for one packet."""
    packed: bytes = msgpack.packb([HELLO, list(handle), shape.rows, shape.places, shape.weights.rows()])
    if len(packed) > PACKET:
        raise ProtocolError(f"weights of {len(shape.weights.places):,} arrays are too many to be told in one packet")
    return packed


def read_hello(data: bytes, seen: tuple[np.dtype[Any], tuple[int, ...]], memory: Kept, width: int) -> tuple[Any, Shape]:
    """(handle of the memory, its shape) from an actor's first packet. Raises ProtocolError for bytes that are none."""
    try:
        kind, handle, rows, places, layout = msgpack.unpackb(data)
        fits = kind == HELLO and type(rows) is int and type(places) is int and 0 < rows < 2**24 and 0 < places <= 64
        weights = Layout.from_rows(layout)
    except (ValueError, TypeError) as odd:
        raise ProtocolError(f"an actor's first packet is odd: {odd}") from odd
    if not fits:
        raise ProtocolError("an actor's first packet is odd")
    return tuple(handle), Shape(seen, memory, width, rows, places, weights)
