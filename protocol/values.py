"""Plain values and arrays as bytes, and back: the form in which calls and results cross a network.

The one idea: to read these bytes runs no code of their sender. A value has a short list of types; its depth, its size and its
counts are checked before memory is taken for them, so bytes of a stranger end in a value or in a ProtocolError.

A value is (head, buffers). The head is msgpack without maps: None, bool, int, float, str and bytes are themselves, and anything
else is a list that begins with its kind. Large runs of numbers are in the buffers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import msgpack
import numpy as np

from shoal.protocol.codec import UNPACKED
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.layout import DTYPES, MAX_RANK, NAMES, Bytes, aligned

MAX_HEAD = 1 << 21  # bytes of a head: an entry of it takes 1 byte there, and 72 bytes as a Python list at most
MAX_BUFFERS = 65_536
MAX_DEPTH = 64  # levels of lists, tuples and dicts
MAX_DIGITS = 4_096  # bytes of an integer beyond 64 bits
MAX_KEYS = 4_096  # keys of dicts that are tuples, in all of a value: their hashes can be made to collide
RUN = 64  # numbers of a list or tuple from which on they travel as a buffer
MAGIC = b"V1"  # begins a value with its buffers behind it
LIST, TUPLE, DICT, ARRAY, SCALAR, INTEGER, FLOATS, INTEGERS = range(8)
PLAIN = frozenset({type(None), bool, float, str, bytes})


def pack(value: object, what: str = "the value") -> bytes:
    """A value with its buffers behind it, as one run of bytes. Raises UserError as `split`."""
    head, buffers = split(value, what)
    sizes = [one.nbytes for one in buffers]
    front = MAGIC + msgpack.packb((head, sizes))
    whole = bytearray(aligned(len(front)) + sum(map(aligned, sizes)))
    whole[: len(front)] = front
    at = aligned(len(front))
    for one in buffers:
        whole[at : at + one.nbytes] = one.data
        at += aligned(one.nbytes)
    return bytes(whole)


def read(data: Any, writable: bool = True) -> Any:
    """The value of `pack`'s bytes, with arrays of its own; if not `writable`, they lie in `data`. Raises ProtocolError for any
    other bytes."""
    view = memoryview(data)
    if bytes(view[: len(MAGIC)]) != MAGIC:
        raise ProtocolError("these bytes are not of a plain value")
    unpacker = msgpack.Unpacker(
        read_size=4_096,
        max_buffer_size=0,
        max_bin_len=MAX_HEAD,
        max_array_len=MAX_BUFFERS,
        max_str_len=0,
        max_map_len=0,
        max_ext_len=0,
    )
    unpacker.feed(view[len(MAGIC) : len(MAGIC) + MAX_HEAD + 9 * MAX_BUFFERS + 16])
    try:
        front = unpacker.unpack()
    except (*UNPACKED, msgpack.OutOfData) as wrong:
        raise ProtocolError(f"the front of a plain value cannot be read: {type(wrong).__name__}") from None
    if not (type(front) is list and len(front) == 2 and type(front[0]) is bytes and type(front[1]) is list):
        raise ProtocolError("the front of a plain value is not a head and sizes")
    head, sizes = front
    if not all(type(size) is int and 0 <= size <= len(view) for size in sizes):
        raise ProtocolError("a plain value has a buffer of more bytes than there are")
    starts = list(accumulate(map(aligned, sizes), initial=aligned(len(MAGIC) + unpacker.tell())))
    if starts[-1] != len(view):
        raise ProtocolError(f"a plain value of {len(view)} bytes says that it has {starts[-1]}")
    run = np.frombuffer(view, np.uint8)
    return join(head, [run[at : at + size] for (at, _), size in zip(pairwise(starts), sizes, strict=True)], writable)


def pack_quickly(value: object) -> bytes:
    """Plain data of a few kinds as bytes, at a tenth of the cost of `pack`: None, bool, int of 64 bits, float, str, bytes, and
    lists, tuples and dicts of these. Tuples come back as lists. Raises UserError for anything else."""
    try:
        return bytes(msgpack.packb(value))
    except (TypeError, ValueError, OverflowError) as odd:
        raise UserError(f"a value cannot be told as plain data: {odd}") from None


def read_quickly(data: bytes) -> Any:
    """The value of `pack_quickly`'s bytes. Raises ProtocolError for any other bytes."""
    most = len(data)
    try:
        return msgpack.unpackb(
            data,
            strict_map_key=False,
            max_str_len=most,
            max_bin_len=most,
            max_array_len=most,
            max_map_len=most,
            max_ext_len=0,
        )
    except UNPACKED as wrong:
        raise ProtocolError(f"plain data cannot be read: {type(wrong).__name__}") from None


def split(value: object, what: str = "the value") -> tuple[bytes, list[Bytes]]:
    """The head and the buffers of a value. Buffers are views of contiguous arrays. Raises UserError, one line that names the
    part (`args[1]['x']`), if the value has a part of another type, or is too large or deep. what: the value, in words."""
    buffers: list[Bytes] = []
    head = msgpack.packb(_form(value, what, buffers, MAX_DEPTH))
    if len(head) > MAX_HEAD:
        raise UserError(f"{what} takes {len(head):,} bytes beside its arrays, and {MAX_HEAD:,} can travel: make it arrays")
    if len(buffers) > MAX_BUFFERS:
        raise UserError(f"{what} has {len(buffers):,} arrays, and {MAX_BUFFERS:,} can travel: make fewer and larger ones")
    return head, buffers


def _form(value: Any, path: str, buffers: list[Bytes], depth: int) -> Any:
    """A value as msgpack has it; arrays are appended to `buffers`."""
    kind = type(value)
    if kind in PLAIN:
        return value
    if kind is int:
        return value if -(2**63) <= value < 2**63 else _integer(value, path)
    if depth == 0:
        raise UserError(f"{path} is nested more than {MAX_DEPTH} deep: give it fewer levels, or make it an array")
    if kind is list or kind is tuple:
        return _sequence(value, path, buffers, depth)
    if kind is dict:
        form: list[Any] = [DICT]
        for key, one in value.items():
            form.append(_form(_key(key, path), f"a key of {path}", buffers, depth - 1))
            form.append(_form(one, f"{path}[{key!r}]", buffers, depth - 1))
        return form
    if kind is np.ndarray:
        name = _dtype(value, path)
        buffers.append(np.ascontiguousarray(value).reshape(-1).view(np.uint8) if value.size else np.empty(0, np.uint8))
        return [ARRAY, name, list(value.shape), len(buffers) - 1]
    if isinstance(value, np.generic):
        return [SCALAR, _dtype(value, path), value.tobytes()]
    raise UserError(
        f"{path} is of type {kind.__name__}, which cannot travel to another machine: give None, bool, int, float, str, bytes, "
        "list, tuple, dict or numpy arrays"
    )


def _sequence(value: Sequence[Any], path: str, buffers: list[Bytes], depth: int) -> list[Any]:
    kinds = {type(one) for one in value} if len(value) >= RUN else set[type]()
    place = TUPLE if type(value) is tuple else LIST
    if kinds == {float}:
        buffers.append(np.array(value, "<f8").view(np.uint8))
        return [FLOATS, place, len(buffers) - 1]
    if kinds == {int} and min(value) >= -(2**63) and max(value) < 2**63:
        buffers.append(np.array(value, "<i8").view(np.uint8))
        return [INTEGERS, place, len(buffers) - 1]
    return [place, *(_form(one, f"{path}[{at}]", buffers, depth - 1) for at, one in enumerate(value))]


def _integer(value: int, path: str) -> list[Any]:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if len(raw) > MAX_DIGITS:
        raise UserError(f"{path} is an integer of {len(raw):,} bytes, and {MAX_DIGITS:,} can travel")
    return [INTEGER, raw]


def _key(key: Any, path: str) -> Any:
    fits = type(key) in PLAIN or (type(key) is int and -(2**63) <= key < 2**63)
    if not (fits or (type(key) is tuple and all(type(one) in PLAIN or type(one) is int for one in key))):
        kind = type(key).__name__
        raise UserError(f"{path} has a key of type {kind}, which cannot travel: give text, numbers, or tuples of them")
    return key


def _dtype(value: Any, path: str) -> str:
    name = NAMES.get(value.dtype.str)
    if name is None:
        raise UserError(f"{path} is an array of dtype {value.dtype}, which cannot travel: make it one of {', '.join(DTYPES)}")
    return name


def join(head: bytes, buffers: Sequence[Bytes], writable: bool = True) -> Any:
    """The value of a head and its buffers; else as `read`."""
    if len(head) > MAX_HEAD:
        raise ProtocolError(f"the head of a plain value has {len(head):,} bytes, and {MAX_HEAD:,} is the limit")
    try:
        form = msgpack.unpackb(
            head,
            max_str_len=MAX_HEAD,
            max_bin_len=MAX_HEAD,
            max_array_len=MAX_HEAD,
            max_map_len=0,
            max_ext_len=0,
        )
    except UNPACKED as wrong:
        raise ProtocolError(f"the head of a plain value cannot be read: {type(wrong).__name__}") from None
    return _Reading(buffers, writable).value(form, MAX_DEPTH)


class _Reading:
    """The reading of one value. It holds what is counted over all parts of the value: each buffer may be used once."""

    def __init__(self, buffers: Sequence[Bytes], writable: bool) -> None:
        self._buffers: dict[int, Bytes] = dict(enumerate(buffers))
        self._writable, self._keys = writable, 0

    def value(self, form: Any, depth: int) -> Any:
        kind = type(form)
        if kind in PLAIN or kind is int:
            return form
        if kind is not list or not form or type(form[0]) is not int or depth == 0:
            raise ProtocolError("a part of a plain value is of no kind that can be, or too deep")
        if form[0] == LIST:
            return [self.value(one, depth - 1) for one in form[1:]]
        if form[0] == TUPLE:
            return tuple([self.value(one, depth - 1) for one in form[1:]])
        if form[0] == DICT:
            return self._dict(form, depth)
        maker = MAKERS.get(form[0])
        if maker is None:
            raise ProtocolError(f"a part of a plain value is of the kind {form[0]}, which does not exist")
        return maker(self, form)

    def _dict(self, form: list[Any], depth: int) -> dict[Any, Any]:
        if len(form) % 2 == 0:
            raise ProtocolError("a dict of a plain value has a key without a value")
        made = {}
        for at in range(1, len(form), 2):
            key = form[at]
            if type(key) is list:
                key = self._tuple(key)
            made[key] = self.value(form[at + 1], depth - 1)
        return made

    def _tuple(self, form: list[Any]) -> tuple[Any, ...]:
        self._keys += 1
        key = self.value(form, 2)
        if type(key) is not tuple or not all(type(one) in PLAIN or type(one) is int for one in key):
            raise ProtocolError("a dict of a plain value has a key that is no key")
        if self._keys > MAX_KEYS:
            raise ProtocolError(f"the dicts of a plain value have more than {MAX_KEYS} tuples as keys")
        return key

    def array(self, form: list[Any]) -> Any:
        match form:
            case [_, str(name), [*shape], int(at)] if name in DTYPES and name != "bf16" and len(shape) <= MAX_RANK:
                if all(type(one) is int and 0 <= one < 2**48 for one in shape):
                    nbytes = math.prod(shape) * DTYPES[name].itemsize
                    return self._numbers(at, nbytes).view(DTYPES[name]).reshape(shape)
        raise ProtocolError("an array of a plain value has another form than dtype, shape, buffer")

    def scalar(self, form: list[Any]) -> Any:
        match form:
            case [_, str(name), bytes(raw)] if name in DTYPES and name != "bf16" and len(raw) == DTYPES[name].itemsize:
                return np.frombuffer(raw, DTYPES[name])[0]
        raise ProtocolError("a number of a plain value has another form than dtype and its bytes")

    def integer(self, form: list[Any]) -> int:
        match form:
            case [_, bytes(raw)] if 8 < len(raw) <= MAX_DIGITS:
                return int.from_bytes(raw, "little", signed=True)
        raise ProtocolError(f"a large integer of a plain value has other than 9 to {MAX_DIGITS} bytes")

    def numbers(self, form: list[Any]) -> Any:
        match form:
            case [int(kind), 0 | 1 as place, int(at)] if at in self._buffers and self._buffers[at].nbytes % 8 == 0:
                dtype = "<f8" if kind == FLOATS else "<i8"
                made = self._numbers(at, self._buffers[at].nbytes).view(dtype).tolist()
                return tuple(made) if place == TUPLE else made
        raise ProtocolError("a run of numbers of a plain value has no buffer of whole numbers")

    def _numbers(self, at: int, nbytes: int) -> Bytes:
        buffer = self._buffers.pop(at, None)  # once: or a few bytes could claim a large buffer many times
        if buffer is None or buffer.nbytes != nbytes:
            raise ProtocolError(f"an array of a plain value says that it has {nbytes} bytes, and its buffer is another or gone")
        return buffer.copy() if self._writable else buffer


MAKERS: Mapping[int, Callable[[_Reading, list[Any]], Any]] = {
    ARRAY: _Reading.array,
    SCALAR: _Reading.scalar,
    INTEGER: _Reading.integer,
    FLOATS: _Reading.numbers,
    INTEGERS: _Reading.numbers,
}
