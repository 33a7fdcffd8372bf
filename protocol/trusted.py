"""Python objects as bytes, between processes that were forked from one user's program. No other file of Shoal pickles.

The one idea: to unpickle is to run the sender's code. So this is used between a program and its own forks alone, over a socket
in a folder that only its user can enter; an object with large arrays is a pickle beside a segment of shared memory, so that the
arrays are written once and read where they lie.
"""

from __future__ import annotations

import io
import os
import pickle
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeAlias

import msgpack

from shoal.protocol.align import aligned
from shoal.protocol.alike import Alike
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.shared import Segment, ShortError, copied

if TYPE_CHECKING:
    from shoal.protocol.layout import Bytes

FILED = 1  # the fifth number of a handle whose segment is a file
SPARE = 64  # descriptors that are left to others
LARGE = 1 << 16  # bytes of a buffer (an array's, say) from which on it lies beside the pickle
PARTS = 200  # parts of an object that are tried, when an object cannot travel, to name the part that cannot
DEEP = 4  # levels of parts that are tried
EXTRA = "install shoal[tasks]"
Apart: TypeAlias = Callable[[Any], tuple[Any, ...] | None]
"""(object) -> what `__reduce__` would give for it; None: pickle the object as always."""


class GoneError(ProtocolError):
    """The process that packed a parcel has ended before the parcel was opened, and its memory with it."""


class Beside(Segment):
    """Memory for the large buffers of one parcel, given back with the last reference to it."""

    __slots__ = ("__weakref__",)

    def __del__(self) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Parcel:
    """An object as bytes. segment: the memory in which its large buffers lie, which must live until the parcel is opened; None
    if there are none, or they are in `data`. filed: that memory is a file's, which is not counted. others: memory of other
    parcels, in which some of its buffers lie."""

    data: bytes
    segment: Segment | None = None
    filed: bool = False
    others: tuple[Segment, ...] = ()

    @property
    def nbytes(self) -> int:
        return len(self.data) + (self.segment.handle[2] if self.segment and not self.filed else 0)


def pack_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any], alike: Alike | None = None) -> Parcel:
    """The parcel of the pair (args, kwargs); else as `pack`."""
    return pack((args, kwargs), Arguments(args, kwargs), alike=alike)


def pack(value: object, called: object = None, folder: str = "", alike: Alike | None = None) -> Parcel:
    """The parcel of an object. Raises UserError, with the path of the part that cannot travel (`args[1].model.lock`). called:
    what an error calls the object, if that is not the object itself. folder: where large parts lie in a file without a name; in
    memory if that cannot be written. alike: buffers of other parcels, of which equal ones are not written again."""
    buffers: list[memoryview] = []
    try:
        head = pickle.dumps(value, 5, buffer_callback=partial(_aside, buffers))
    except Exception as raised:  # noqa: BLE001  an object's own __reduce__ may raise anything
        buffers.clear()
        head = _by_value(value, value if called is None else called, buffers, raised)
    return (folder and _filed(head, buffers, folder)) or _boxed(head, buffers, alike)


def pack_apart(value: object, apart: Apart, called: object = None) -> Parcel:
    """The parcel of an object; else as `pack`. Functions and classes of the main program, and those without a name, travel by
    value: a process that was forked before they were defined, or defined anew, opens them too. apart: asked for each object but
    plain ones (None, numbers, text, bytes, tuples, lists, dicts, sets)."""
    buffers: list[memoryview] = []
    file = io.BytesIO()
    try:
        _pickler()(file, partial(_aside, buffers), apart).dump(value)
    except Exception as raised:
        part = unfit(value if called is None else called, "")
        raise UserError(f"{part} cannot travel to another process: {raised}") from raised
    return _boxed(file.getvalue(), buffers)


@cache
def _pickler() -> Any:
    """The class of cloudpickle's pickler that asks how an object travels."""

    class Asking(_cloudpickle().Pickler):  # type: ignore[misc]
        def __init__(self, file: io.BytesIO, aside: Callable[[pickle.PickleBuffer], bool], apart: Apart) -> None:
            super().__init__(file, 5, buffer_callback=aside)
            self._apart = apart

        def reducer_override(self, value: Any) -> Any:
            its = self._apart(value)
            return super().reducer_override(value) if its is None else its

    return Asking


def _boxed(head: bytes, buffers: Sequence[memoryview], alike: Alike | None = None) -> Parcel:
    """The parcel of a pickle and its large buffers."""
    if not buffers:
        return Parcel(b"." + head)
    lengths = [one.nbytes for one in buffers]
    known = {at: place for at, one in enumerate(buffers) if alike is not None and (place := alike.find(one))}
    others = [(at, segment.handle, first) for at, (segment, first) in known.items()]
    own = [one for at, one in enumerate(buffers) if at not in known]
    *starts, nbytes = accumulate((aligned(one.nbytes) for one in own), initial=0)
    placed = list(zip(starts, own, strict=True))
    segment = _memory_for(nbytes, placed) if own else None
    if segment and alike is not None:
        alike.add(segment, placed)
    inline = b"" if segment else b"".join(own)  # if there is no memory, the bytes go with the pickle
    data = msgpack.packb((head, lengths, segment.handle if segment else (), inline, others))
    return Parcel(data, segment, others=tuple(segment for segment, _ in known.values()))


def _filed(head: bytes, buffers: Sequence[memoryview], folder: str) -> Parcel | None:
    """The parcel of a pickle that lies in a file if it is large, with its large buffers; None if it has no large part, or the
    file cannot be written."""
    if len(head) >= LARGE:
        head, buffers = b"", [memoryview(head), *buffers]
    if not buffers:
        return None
    lengths = [one.nbytes for one in buffers]
    *starts, nbytes = accumulate(map(aligned, lengths), initial=0)
    try:
        segment = Beside.create(nbytes, parts=list(zip(starts, buffers, strict=True)), folder=folder)
    except UserError:
        return None
    return Parcel(msgpack.packb((head, lengths, (*segment.handle, FILED), b"")), segment, filed=True)


def _memory_for(nbytes: int, parts: Sequence[tuple[int, memoryview]]) -> Segment | None:
    """Memory with buffers in it; None if the system gives none, or if it takes one of the last SPARE descriptors of a process.
    The program's own files and the sockets of new actors need those, and each call that waits holds a descriptor."""
    try:
        segment = Beside.create(nbytes, parts=parts)
    except UserError:
        return None
    if _spares(segment.handle[1]):
        return segment
    segment.close()
    return None


def _spares(descriptor: int) -> bool:
    """Return whether a descriptor is none of the last SPARE of this process."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most == resource.RLIM_INFINITY or descriptor < most - min(SPARE, most // 2)


def held(data: bytes) -> Parcel | None:
    """The same parcel, whose memory this process holds: it can be opened also when the process that packed it has ended. None
    if all of it is in its bytes, or if too few descriptors are left to hold one. Raises GoneError."""
    if data[:1] == b".":
        return None
    head, lengths, handle, _, *others = msgpack.unpackb(data, max_bin_len=len(data))
    if not handle or (others and others[0]):  # a result shares its memory with no other parcel
        return None
    try:
        segment = Beside.open(tuple(handle[:4]), hold=True, filed=len(handle) > 4)
    except ShortError:
        return None
    except ProtocolError as gone:
        raise GoneError(str(gone)) from gone
    if not _spares(segment.handle[1]):
        segment.close()
        return None
    return Parcel(msgpack.packb((head, lengths, (*segment.handle, *handle[4:]), b"")), segment, filed=len(handle) > 4)


def read(data: bytes) -> Any:
    """The object of a parcel, whose large arrays are read in place and cannot be written; else as `opened`."""
    return opened(data, private=False)


def opened(data: Any, private: bool = True) -> Any:
    """The object of a parcel that `pack` made in another process of this program. Arrays that lie in shared memory are read in
    place, and a write to them stays in this process; if not `private`, they cannot be written. Raises GoneError if their memory
    has gone with its process, and what unpickling raises."""
    if bytes(data[:1]) == b".":
        return pickle.loads(data[1:])
    head, lengths, handle, inline, *others = msgpack.unpackb(data, max_bin_len=len(data))
    buffers = _buffers(lengths, handle, inline, others[0] if others else (), private)
    return pickle.loads(head or buffers.pop(0), buffers=buffers)


def _buffers(
    lengths: Sequence[int], handle: Sequence[int], inline: bytes, others: Sequence[Any] = (), private: bool = False
) -> list[Any]:
    """The large buffers of a parcel. others: (place among them, handle, first byte) of those that lie in memory of others."""
    own: Any = _memory(handle, private) if handle else memoryview(bytearray(inline))
    elsewhere = {place: (tuple(its), first) for place, its, first in others}
    memory = {its: _memory(its, private) for its, _ in elsewhere.values()}
    buffers, at = list[Any](), 0
    for place, nbytes in enumerate(lengths):
        if place in elsewhere:
            its, first = elsewhere[place]
            buffers.append(memory[its][first : first + nbytes])
        else:
            buffers.append(own[at : at + nbytes])
            at += aligned(nbytes) if handle else nbytes
    return buffers


def _memory(handle: Sequence[int], private: bool = False) -> Bytes:
    try:
        its = Segment.open(tuple(handle[:4]), hold=True, filed=len(handle) > 4)
    except ShortError:
        if handle[0] != os.getpid():
            raise
        return copied(tuple(handle))  # it is held here already
    except ProtocolError as gone:
        raise GoneError(str(gone)) from gone
    with closing(its):
        if _spares(its.handle[1]):
            with suppress(OSError):  # a mapping takes a descriptor too
                return its.mapped(private)
        return copied(its.handle)


def whole(data: bytes) -> bytes:
    """A parcel as bytes alone, for a file: buffers in shared memory are copied. Raises GoneError if that memory is gone."""
    if data[:1] == b".":
        return data
    head, lengths, handle, inline, *others = msgpack.unpackb(data, max_bin_len=len(data))
    others = others or [()]  # results that an earlier version kept have none
    if not handle and not others[0]:
        return data
    return bytes(msgpack.packb((head, lengths, (), b"".join(_buffers(lengths, handle, inline, others[0])), ())))


def plain(value: object) -> bytes:
    """The pickle of an object, large arrays included, by which it is known again. Raises UserError if it cannot be made."""
    try:
        return pickle.dumps(value, 5)
    except Exception as raised:  # noqa: BLE001  an object's own __reduce__ may raise anything
        return _by_value(value, value, None, raised)


def by_value(value: object) -> Parcel:
    """The parcel of a function or class that other processes do not have. Raises UserError if it cannot travel."""
    return Parcel(b"." + _by_value(value, value, None, None))


def _aside(buffers: list[memoryview], buffer: pickle.PickleBuffer) -> bool:
    """Keep a large buffer beside the pickle. Returns True for a small one, which goes into the pickle."""
    raw = buffer.raw()
    if raw.nbytes < LARGE:
        return True
    buffers.append(raw)
    return False


def _by_value(value: object, called: object, buffers: list[memoryview] | None, raised: BaseException | None) -> bytes:
    try:
        cloudpickle = _cloudpickle()
    except ModuleNotFoundError:
        what = unfit(called, "") if raised else "a function that was made here"
        why = f" ({raised})" if raised else ""
        raise UserError(f"{what} has no name that another process could import{why}: define it in a file, or {EXTRA}") from None
    try:
        aside = None if buffers is None else partial(_aside, buffers)
        done: bytes = cloudpickle.dumps(value, 5, buffer_callback=aside)
    except Exception as again:
        raise UserError(f"{unfit(called, '')} cannot travel to another process: {again}") from again
    return done


def _cloudpickle() -> Any:
    """The module cloudpickle, or joblib's copy of it where joblib is loaded. Raises ModuleNotFoundError."""
    try:
        import cloudpickle
    except ModuleNotFoundError:
        if (copy := sys.modules.get("joblib.externals.cloudpickle")) is None:
            raise
        return copy
    return cloudpickle


def unfit(value: object, path: str) -> str:
    """The path of the innermost part of an object that cannot be pickled, or the path of the object itself. At most PARTS parts
    of an object are tried, DEEP levels down."""
    for _ in range(DEEP):
        for name, part in _parts(value):
            if not _travels(part):
                value, path = part, f"{path}{name}"
                break
        else:
            break
    return path.removeprefix(".") or f"an object of type {type(value).__name__}"


def _parts(value: object) -> Iterator[tuple[str, object]]:
    named: dict[str, object] = {}
    if isinstance(value, Arguments):
        named = {f"args[{at}]": one for at, one in enumerate(value.args)} | {
            f"{name}": one for name, one in value.kwargs.items()
        }
    elif isinstance(value, list | tuple | set | frozenset):
        named = {f"[{at}]": one for at, one in enumerate(list(value)[:PARTS])}
    elif isinstance(value, Mapping):
        named = {f"[{key!r}]": one for key, one in list(value.items())[:PARTS]}
    elif isinstance(inside := getattr(value, "__dict__", None), dict):
        named = {f".{name}": one for name, one in list(inside.items())[:PARTS]}
    yield from named.items()


def _travels(value: object) -> bool:
    try:
        pickle.dumps(value, 5)
    except Exception:  # noqa: BLE001  an object's own __reduce__ may raise anything
        return False
    return True


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of a call."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
