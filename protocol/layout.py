"""Named arrays in one flat buffer.

The one idea: both ends agree once on a `Layout` (names, dtypes, shapes, offsets); afterwards a model or a trajectory is
a single run of bytes, so that a copy, a sum, a checksum or a trip to the device is one operation. Bytes that came in several
buffers are the same run, walked one buffer at a time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import msgpack
import numpy as np
import numpy.typing as npt

from shoal.protocol.align import ALIGNMENT as ALIGNMENT
from shoal.protocol.align import aligned as aligned
from shoal.protocol.errors import ProtocolError, UserError

DTYPES: Mapping[str, np.dtype[Any]] = {
    "f4": np.dtype("<f4"),
    "f8": np.dtype("<f8"),
    "f2": np.dtype("<f2"),
    "bf16": np.dtype("<u2"),  # numpy has no bfloat16: its bits travel as two unsigned bytes
    "i1": np.dtype("i1"),
    "i2": np.dtype("<i2"),
    "i4": np.dtype("<i4"),
    "i8": np.dtype("<i8"),
    "u1": np.dtype("u1"),
    "b1": np.dtype("?"),
}
Bytes: TypeAlias = npt.NDArray[np.uint8]
NAMES: Mapping[str, str] = {dtype.str: name for name, dtype in DTYPES.items() if name != "bf16"}
UNSIGNED: Mapping[str, np.dtype[Any]] = {"u2": np.dtype("<u2"), "u4": np.dtype("<u4"), "u8": np.dtype("<u8")}
STORED: Mapping[str, str] = {**NAMES, **{dtype.str: name for name, dtype in UNSIGNED.items()}}
"""numpy's name of a dtype -> a snapshot's name of it, for each dtype that an aggregator's state may have."""
MAX_ARRAYS = 65_536  # arrays of a layout
MAX_RANK = 8  # dimensions of an array
MAX_NAME = 256  # characters of an array's name


RUN = "bytes:"  # begins the digest of a run of bytes


def run_of(digest: str) -> int | None:
    """The number of bytes of a layout made by `Layout.run`, from its digest; None if the digest is of another layout."""
    number = digest.removeprefix(RUN)
    fits = number != digest and number.isascii() and number.isdecimal() and len(number) <= 15
    return int(number) if fits and str(int(number)) == number else None


def dtype_name(dtype: npt.DTypeLike) -> str:
    """The wire's name of a numpy dtype. Raises TypeError for a dtype that does not travel (objects, strings, big-endian)."""
    found = NAMES.get(np.dtype(dtype).str)
    if found is None:
        raise TypeError(f"arrays of dtype {np.dtype(dtype)} do not travel; use one of {', '.join(DTYPES)}")
    return found


@dataclass(frozen=True, slots=True)
class Place:
    """The place of one array. offset: bytes from the start of the buffer."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, eq=False)
class Layout:
    """The places of all arrays. Arrays of one dtype lie side by side without gaps (a *segment*), each segment aligned
    to 64 bytes, so that `Bundle.vector("f4")` is every float32 parameter at once."""

    places: tuple[Place, ...]
    nbytes: int
    digest: str
    segments: Mapping[str, tuple[int, int]]  # dtype -> first byte, one past the last byte
    by_name: Mapping[str, Place] = field(repr=False)
    still: frozenset[str] = field(default=frozenset(), repr=False)
    made: dict[bool, Layout] = field(default_factory=dict, repr=False)  # of sums of it (protocol/exact.py)

    @classmethod
    def of(cls, arrays: Mapping[str, tuple[str, tuple[int, ...]]], still: Iterable[str] = ()) -> Layout:
        """The layout of arrays given as name -> (dtype name, shape). Arrays of one dtype lie in the mapping's order.

        still: names of arrays that training leaves as they are; within a dtype they come last. They do not travel with the
        layout, and are no part of its digest.
        """
        places: list[Place] = []
        segments: dict[str, tuple[int, int]] = {}
        offset = 0
        for dtype in dict.fromkeys(dtype for dtype, _ in arrays.values()):
            offset = start = aligned(offset)
            for name, (its, shape) in arrays.items():
                if its == dtype:
                    places.append(Place(name, dtype, tuple(int(n) for n in shape), offset))
                    offset += places[-1].nbytes
            segments[dtype] = (start, offset)
        rows = [[p.name, p.dtype, list(p.shape), p.offset] for p in places]
        digest = hashlib.blake2b(msgpack.packb(rows), digest_size=8).hexdigest()
        return cls(tuple(places), offset, digest, segments, {p.name: p for p in places}, frozenset(still))

    @classmethod
    def like(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Layout:
        return cls.of({name: (dtype_name(a.dtype), a.shape) for name, a in arrays.items()})

    @cached_property
    def moving(self) -> Layout:
        """The layout without the arrays in `still`. The entries of a dtype are the first ones that this layout has of it."""
        return Layout.of({p.name: (p.dtype, p.shape) for p in self.places if p.name not in self.still}) if self.still else self

    def begins_with(self, other: Layout) -> bool:
        """True if the arrays that `other` has of each dtype are the first ones that this layout has of it."""
        return other.digest == self.digest or all(
            mine[: len(theirs)] == theirs
            for dtype in other.segments
            for mine, theirs in [[[(p.name, p.shape) for p in each.places if p.dtype == dtype] for each in (self, other)]]
        )

    @classmethod
    def run(cls, nbytes: int) -> Layout:
        """The layout of one array "bytes" of this many bytes, whose digest says so (`run_of`): for bytes that no two ends can
        agree on beforehand."""
        place = Place("bytes", "u1", (nbytes,), 0)
        return cls((place,), nbytes, f"{RUN}{nbytes}", {"u1": (0, nbytes)}, {"bytes": place})

    def rows(self) -> list[list[Any]]:
        """The layout for the wire: [name, dtype, shape] for each array, in order; offsets follow from these."""
        return [[p.name, p.dtype, list(p.shape)] for p in self.places]

    @classmethod
    def from_rows(cls, rows: Any) -> Layout:
        """The layout that a peer's rows describe, checked entry by entry. Raises ProtocolError."""
        if type(rows) is not list or len(rows) > MAX_ARRAYS:
            raise ProtocolError("a layout is a list of at most 65,536 arrays")
        arrays: dict[str, tuple[str, tuple[int, ...]]] = {}
        for row in rows:
            if type(row) is not list or len(row) != 3:
                raise ProtocolError("an array of a layout is [name, dtype, shape]")
            name, dtype, shape = row
            if type(name) is not str or len(name) > MAX_NAME or name in arrays:
                raise ProtocolError("an array's name is a string of at most 256 characters, used once")
            if type(dtype) is not str or dtype not in DTYPES:
                raise ProtocolError(f"an array's dtype is one of {', '.join(DTYPES)}")
            if type(shape) is not list or len(shape) > MAX_RANK:
                raise ProtocolError(f"an array's shape has at most {MAX_RANK} dimensions")
            if not all(type(n) is int and 0 <= n < 2**48 for n in shape) or math.prod(shape) >= 2**48:
                raise ProtocolError("an array's dimensions are integers from 0, their product below 2**48")
            arrays[name] = (dtype, tuple(shape))
        return cls.of(arrays)

    def expect(self, other: Layout) -> None:
        """Raise ProtocolError unless `other` is this layout."""
        if other is not self and other.digest != self.digest:
            raise ProtocolError(self.difference(other))

    def difference(self, other: Layout) -> str:
        """A line with both digests and the first array in which the layouts differ; empty if they agree."""
        if self.digest == other.digest:
            return ""
        where = "their order differs"
        for name in (*self.by_name, *(name for name in other.by_name if name not in self.by_name)):
            mine, theirs = self.by_name.get(name), other.by_name.get(name)
            if mine is None or theirs is None or (mine.dtype, mine.shape) != (theirs.dtype, theirs.shape):
                where = f"first difference: {name!a} {_form(mine)} here, {_form(theirs)} there"
                break
        return f"layout {self.digest} here is not {other.digest} there; {where}"


def _form(place: Place | None) -> str:
    """Return dtype and shape of an array, for an error."""
    return f"{place.dtype}{list(place.shape)}" if place else "no array"


class Bundle:
    """Named arrays in one buffer: a `Layout` and its bytes. Reading an array is a view, never a copy.

    A bundle that came from another process is read-only; copy it before you change it.
    """

    __slots__ = ("_vectors", "data", "layout")

    def __init__(self, layout: Layout, data: Bytes) -> None:
        if data.dtype != np.uint8 or data.ndim != 1 or data.nbytes != layout.nbytes:
            raise ProtocolError(f"a bundle of layout {layout.digest} has {layout.nbytes} bytes, not {data.nbytes}")
        self.layout = layout
        self.data = data
        self._vectors: dict[str, npt.NDArray[Any]] = {}

    @staticmethod
    def of_buffer(layout: Layout, buffer: Any) -> Bundle:
        """A bundle over the bytes of a frame or of shared memory, without a copy."""
        return Bundle(layout, np.frombuffer(buffer, dtype=np.uint8))

    @staticmethod
    def zeros(layout: Layout) -> Bundle:
        raw = np.zeros(layout.nbytes + ALIGNMENT, dtype=np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        return Bundle(layout, raw[start : start + layout.nbytes])

    @staticmethod
    def pack(arrays: Mapping[str, npt.NDArray[Any]], layout: Layout | None = None) -> Bundle:
        """A bundle with a copy of every array. layout: one of the same names and shapes; None: the layout of the arrays.

        An array of another dtype is cast if numpy calls the cast 'same_kind' (float64 to float32, int64 to float32), and from
        integers or bools to integers or bools if no number changes. bf16 is given as its bits, uint16. Raises UserError, with
        the array's name, for arrays that do not fit, and for names that are missing or not in the layout.
        """
        packed = Bundle.zeros(layout or Layout.like(arrays))
        if odd := arrays.keys() ^ packed.layout.by_name.keys():
            says = (f"{name!r} is {'missing' if name in packed else 'not in the layout'}" for name in sorted(odd, key=str)[:8])
            raise UserError(f"arrays that do not fit their layout: {', '.join(says)}")
        for place in packed.layout.places:
            array, into = np.asarray(arrays[place.name]), packed[place.name]
            same, whole = array.dtype == into.dtype, array.dtype.kind in "biu" and into.dtype.kind in "biu"
            casts = same or (place.dtype != "bf16" and (whole or np.can_cast(array.dtype, into.dtype, "same_kind")))
            if not casts or array.shape != into.shape:
                found, expected = f"{array.dtype}{list(array.shape)}", f"{place.dtype} as {into.dtype}{list(into.shape)}"
                raise UserError(f"array {place.name!r}: found {found}, expected {expected}")
            into[...] = array
            if not same and whole and (into != array).any():
                raise UserError(f"array {place.name!r}: found a number of {array.dtype} that {into.dtype} cannot hold")
        return packed

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        place = self.layout.by_name[name]
        raw = self.data[place.offset : place.offset + place.nbytes]
        return raw.view(DTYPES[place.dtype]).reshape(place.shape)

    def __contains__(self, name: object) -> bool:
        return name in self.layout.by_name

    def items(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for place in self.layout.places:
            yield place.name, self[place.name]

    def vector(self, dtype: str = "f4") -> npt.NDArray[Any]:
        """Return the entries of one dtype as a flat view; of length 0 if there are none."""
        if (vector := self._vectors.get(dtype)) is None:  # making the view of a small bundle costs as much as its sum
            first, last = self.layout.segments.get(dtype, (0, 0))
            vector = self._vectors[dtype] = self.data[first:last].view(DTYPES[dtype])
        return vector

    def blocks(self, dtype: str = "f4") -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """The entries of one dtype in pieces as they lie in memory, in order: (index of a piece's first entry, a flat view).

        A Bundle has one piece, or none if there are no entries. A piece may be looked at until the next is asked for.
        """
        vector = self.vector(dtype)
        return iter(((0, vector),) if vector.size else ())

    def blocks_of(self, name: str) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """The entries of one array in pieces, as `blocks` gives those of a dtype."""
        array = self[name]
        return iter(((0, array.reshape(-1)),) if array.size else ())

    def pieces(self) -> Iterator[Bytes]:
        """Yield the bytes, in order, as they lie in memory."""
        yield self.data

    def copy(self) -> Bundle:
        twin, at = Bundle.zeros(self.layout), 0
        for piece in self.pieces():
            twin.data[at : at + piece.nbytes] = piece
            at += piece.nbytes
        return twin

    def first(self, layout: Layout) -> Bundle:
        """A copy of the first entries of each dtype, as many as `layout` has of it."""
        out = Bundle.zeros(layout)
        for dtype in layout.segments:
            into = out.vector(dtype)
            into[...] = self.vector(dtype)[: into.size]
        return out

    def ends_as(self, other: Bundle, layout: Layout) -> bool:
        """True if the entries behind those that `first` copies have the same bits in `other`, a bundle of this layout."""
        for dtype, (first, last) in self.layout.segments.items():
            start, end = layout.segments.get(dtype, (0, 0))
            behind = slice(first + end - start, last)
            if not np.array_equal(self.data[behind], other.data[behind]):
                return False
        return True

    def sha256(self) -> str:
        """A digest of layout and bytes: two bundles with one digest hold the same weights."""
        digest = hashlib.sha256(self.layout.digest.encode())
        for piece in self.pieces():
            digest.update(piece.data)
        return digest.hexdigest()


Pieces: TypeAlias = Sequence[Bytes] | Callable[[], Iterable[Bytes]]


class Scattered(Bundle):
    """A bundle whose bytes lie in several buffers, one after another: as they came in frames, or as a file is read.

    pieces: uint8 [n] each; every piece but the last is a multiple of 64 bytes long. A function is called for each walk; a
    piece that it yields is looked at only until the next is asked for, so that one buffer may serve for all.
    Checks and sums walk the pieces where they lie. `data`, `vector` and [name] join them on first use, into one more buffer as
    large as the bundle.
    Raises ProtocolError for pieces of other lengths: at once if they are a sequence, on the walk if they come from a function.
    """

    def __init__(self, layout: Layout, pieces: Pieces) -> None:
        self.layout = layout
        self._vectors = {}
        self._pieces = pieces
        if not callable(pieces):
            for _ in self.pieces():
                continue

    @cached_property
    def data(self) -> Bytes:  # type: ignore[override]  # an attribute here too, made on first use
        joined = self.copy().data
        joined.flags.writeable = False
        return joined

    def pieces(self) -> Iterator[Bytes]:
        at, whole = 0, self.layout.nbytes
        for piece in self._pieces() if callable(self._pieces) else self._pieces:
            if piece.dtype != np.uint8 or piece.ndim != 1 or at % ALIGNMENT or at + piece.nbytes > whole:
                raise ProtocolError(f"a piece of {piece.nbytes} bytes from byte {at} on: {self._expected()}")
            yield piece
            at += piece.nbytes
        if at != whole:
            raise ProtocolError(f"pieces of {at} bytes: {self._expected()}")

    def blocks(self, dtype: str = "f4") -> Iterator[tuple[int, npt.NDArray[Any]]]:
        return self._cut(*self.layout.segments.get(dtype, (0, 0)), dtype)

    def blocks_of(self, name: str) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        place = self.layout.by_name[name]
        return self._cut(place.offset, place.offset + place.nbytes, place.dtype)

    def _cut(self, first: int, last: int, dtype: str) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """The entries from byte `first` to before `last`. Pieces begin on multiples of 64 bytes, so no entry is cut in two."""
        its, at = DTYPES[dtype], 0
        if first == last:
            return
        for piece in self.pieces():
            start, end = max(first, at), min(last, at + piece.nbytes)
            if start < end:
                yield (start - first) // its.itemsize, piece[start - at : end - at].view(its)
            at += piece.nbytes
            if at >= last:
                return

    def _expected(self) -> str:
        whole = f"a bundle of layout {self.layout.digest} has {self.layout.nbytes} bytes"
        return f"{whole}, in uint8 pieces that begin on multiples of {ALIGNMENT}"
