"""Messages to bytes and back.

The one idea: a header is a msgpack array [name, session, epoch, *fields] of at most 64 KiB, decoded under limits that make
every known bomb cheap, then checked field by field against the dataclass's own annotations. Arrays never go in a header.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from operator import attrgetter
from typing import Any, TypeAlias, get_args

import msgpack

from shoal.protocol import messages
from shoal.protocol.changes import First, agreed
from shoal.protocol.compress import Coding
from shoal.protocol.errors import ProtocolError
from shoal.protocol.layout import Layout
from shoal.protocol.messages import Envelope

MAX_HEADER = 65_536  # bytes of a header frame
MAX_TEXT = 4_096  # bytes of a string in a header
MAX_LIST = 900  # entries of a list in a header. msgpack nests 1,024 deep, 8 bytes an entry: the worst header costs below 8 MB
MAX_MAP = 256  # entries of a map in a header; no memory is taken for an entry before it is there
MAX_FIGURES = 61_440  # bytes of a contribution's names and figures, as packed at most: they share its header with little else
MAX_WELCOME = 8 << 20  # bytes of a Welcome's payload
MAX_WORDS = 4_096  # bytes of a task's words, packed
FEW = 3  # values of a header frame that are read one by one: an Unpacker costs as much as three
LATER = 8  # fields that a later minor version may have added to a message: they are ignored
MAX_DEPTH = 16  # levels of lists and maps in a task's words
FLOATS = frozenset({float})
PLAIN = (type(None), bool, int, float, str)
UNPACKED = (ValueError, OverflowError, TypeError, RecursionError)  # exceptions that unpacking documents, or was seen to raise

Check: TypeAlias = Callable[[Any], Any]


class MismatchError(Exception):
    """A value is not of its field's type. The text is the type that was expected; the caller adds the field's name."""


def _int(value: Any) -> int:
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise MismatchError("an integer of 64 bits")
    return value


def _float(value: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is int:
        return float(_int(value))
    raise MismatchError("a number")


def _str(value: Any) -> str:
    if type(value) is not str:
        raise MismatchError("a string")
    return value


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise MismatchError("true or false")
    return value


def _tuple_of(check: Check) -> Check:
    def tuple_of(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise MismatchError("a list")
        return tuple([check(one) for one in value])

    return tuple_of


def _floats(value: Any) -> tuple[float, ...]:
    if type(value) is list and FLOATS.issuperset(map(type, value)):  # a rollout has hundreds of episodes at first
        return tuple(value)
    floats: tuple[float, ...] = _tuple_of(_float)(value)
    return floats


def _pair_of(check: Check) -> Check:
    def pair_of(value: Any) -> tuple[Any, ...]:
        if type(value) is not list or len(value) != 2:
            raise MismatchError("a pair")
        return (check(value[0]), check(value[1]))

    return pair_of


def _map_of(check: Check) -> Check:
    def map_of(value: Any) -> Mapping[str, Any]:
        if type(value) is not dict:
            raise MismatchError("a map")
        return {_str(name): check(one) for name, one in value.items()}

    return map_of


def words_fault(words: Any) -> str:
    """The fault of a task's words, as the end of a sentence; "" if they can travel and arrive as they are."""
    try:
        packed = msgpack.packb(words)
        _unpack(packed, MAX_TEXT, MAX_LIST, MAX_MAP)
    except (*UNPACKED, ProtocolError) as wrong:
        return f"not plain data within the limits ({wrong})"
    if len(packed) > MAX_WORDS:
        return f"{len(packed)} bytes when packed, and {MAX_WORDS} is the limit"
    level = [words]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for one in level:
            if type(one) is dict:
                inner += [*one, *one.values()]
            elif type(one) is list:
                inner += one
            elif type(one) not in PLAIN:
                return f"not plain data: a {kind_of(one)} is in them"
        level = inner
    return f"lists and maps nested more than {MAX_DEPTH} deep" if level else ""


def figures_fault(totals: Mapping[str, Any], samples: Mapping[str, Any]) -> str:
    """The fault of a contribution's figures, as the end of a sentence; "" if they can travel."""
    for part, figures in (("totals", totals), ("samples", samples)):
        if len(figures) > MAX_MAP:
            return f"{len(figures)} names in its {part}, and {MAX_MAP} is the limit"
    names = sum(len(name.encode("utf-8", "replace")) + 5 for figures in (totals, samples) for name in figures)
    size = names + 19 * len(totals) + sum(3 + 9 * len(values) for values in samples.values())
    return f"{size} bytes of figures and their names, and {MAX_FIGURES} is the limit" if size > MAX_FIGURES else ""


def _words(value: Any) -> Mapping[str, Any]:
    if type(value) is not dict or (value and words_fault(value)):
        raise MismatchError(f"a map of plain data of at most {MAX_WORDS} bytes")
    return value


CHECKS: Mapping[str, Check] = {
    "int": _int,
    "float": _float,
    "str": _str,
    "bool": _bool,
    "TaskName": _pair_of(_int),
    "tuple[int, ...]": _tuple_of(_int),
    "tuple[str, ...]": _tuple_of(_str),
    "Mapping[str, tuple[float, float]]": _map_of(_pair_of(_float)),
    "Mapping[str, tuple[float, ...]]": _map_of(_floats),
    "Words": _words,
}


class Schema:
    """The wire form of one message class: its fields' names and checks, in order; the last fields may have defaults."""

    def __init__(self, cls: type[Any]) -> None:
        self.cls = cls
        self.names = [f.name for f in fields(cls)]
        self.checks = [CHECKS[str(f.type)] for f in fields(cls)]
        self.least = sum(f.default is MISSING and f.default_factory is MISSING for f in fields(cls))

    def values(self) -> Callable[[Any], tuple[Any, ...]]:
        """A function that reads all fields of a message, in order."""
        if len(self.names) > 1:
            return attrgetter(*self.names)
        return lambda message: tuple(getattr(message, name) for name in self.names)

    def message(self, values: list[Any]) -> Any:
        if not self.least <= len(values) <= len(self.names) + LATER:
            raise ProtocolError(f"{self.cls.__name__} has {len(self.names)} fields, not {len(values)}")
        try:
            return self.cls(*[check(value) for check, value in zip(self.checks, values)])  # noqa: B905  a later version has more
        except MismatchError:
            raise ProtocolError(self._fault(values)) from None

    def _fault(self, values: list[Any]) -> str:
        """The fault of the first value that is not of its field's type."""
        for name, check, value in zip(self.names, self.checks, values):  # noqa: B905
            try:
                check(value)
            except MismatchError as wrong:
                return f"{self.cls.__name__}.{name} is {wrong}, not {kind_of(value)}"
        return ""


SCHEMAS: Mapping[str, Schema] = {cls.__name__: Schema(cls) for cls in get_args(messages.Message)}
NAMES: Mapping[type[Any], tuple[str, Callable[[Any], tuple[Any, ...]]]] = {
    schema.cls: (name, schema.values()) for name, schema in SCHEMAS.items()
}


def kind_of(value: Any) -> str:
    """A word for a peer's value. Never the value itself, which may be hostile, deep or huge."""
    return type(value).__name__


def encode(envelope: Envelope) -> bytes:
    """The header frame of a message."""
    message = envelope.message
    name, values = NAMES[type(message)]
    packed: bytes = msgpack.packb((name, envelope.session, envelope.epoch, *values(message)))
    if len(packed) > MAX_HEADER:
        raise ProtocolError(f"a {name} of {len(packed)} bytes is past the limit of {MAX_HEADER}")
    return packed


def encode_arrays(payload: Any) -> bytes:
    """Arrays as bytes that follow their message in the header frame itself; for small arrays."""
    packed: bytes = msgpack.packb(memoryview(payload))
    return packed


def decode_all(frame: Any) -> list[tuple[Envelope, bytes | None]]:
    """The messages of a header frame, one or more, each with the arrays that follow it there. Raises ProtocolError, and no
    other exception, whatever the bytes."""
    if len(frame) > MAX_HEADER:
        raise ProtocolError(f"a header frame has at most {MAX_HEADER} bytes, not {len(frame)}")
    said: list[tuple[Envelope, bytes | None]] = []
    for value in _values(frame):
        if type(value) is not bytes:
            said.append((_envelope(value), None))
        elif said and said[-1][1] is None:
            said[-1] = (said[-1][0], value)
        else:
            raise ProtocolError("a header frame has arrays that follow no message")
    return said


def _values(frame: Any) -> list[Any]:
    """The msgpack values of a frame, one after another. Raises ProtocolError."""
    values: list[Any] = []
    for _ in range(FEW):
        try:
            return [*values, _unpacked(frame, MAX_TEXT, MAX_LIST, MAX_MAP, MAX_HEADER)]
        except msgpack.ExtraData as more:
            values.append(more.unpacked)
            frame = more.extra
        except UNPACKED:
            break
    unpacker = msgpack.Unpacker(
        raw=False, strict_map_key=True, max_str_len=MAX_TEXT, max_bin_len=MAX_HEADER, max_array_len=MAX_LIST,
        max_map_len=MAX_MAP, max_ext_len=0, max_buffer_size=MAX_HEADER,
    )  # fmt: skip
    unpacker.feed(frame)
    whole = 0  # bytes up to which the frame is made of whole values
    try:
        for value in unpacker:
            whole = unpacker.tell()
            values.append(value)
    except UNPACKED as wrong:
        raise ProtocolError(f"not msgpack within the limits ({type(wrong).__name__})") from None
    if not values or whole != len(frame):
        raise ProtocolError("a header frame ends in the middle of a value")
    return values


def decode(header: Any) -> Envelope:
    """The only message of a header frame. Raises ProtocolError, and no other exception, whatever the bytes."""
    if len(header) > MAX_HEADER:
        raise ProtocolError(f"a header has at most {MAX_HEADER} bytes, not {len(header)}")
    return _envelope(_unpack(header, MAX_TEXT, MAX_LIST, MAX_MAP))


def _envelope(value: Any) -> Envelope:
    if type(value) is not list or len(value) < 3:
        raise ProtocolError("a header is [name, session, epoch, fields ...]")
    name, session, epoch, *values = value
    if type(name) is not str or type(session) is not bytes or len(session) > 16:
        raise ProtocolError("a header is [name, session, epoch, fields ...]")
    if type(epoch) is not int or not 0 <= epoch < 2**63:
        raise ProtocolError("an epoch is an integer from 0")
    if (schema := SCHEMAS.get(name)) is None:
        raise ProtocolError("a message has a name that is not of the protocol")
    return Envelope(session, epoch, schema.message(values))


def _unpacked(raw: Any, text: int, items: int, entries: int, binary: int) -> Any:
    return msgpack.unpackb(
        raw, raw=False, strict_map_key=True, max_str_len=text, max_bin_len=binary, max_array_len=items, max_map_len=entries,
        max_ext_len=0,
    )  # fmt: skip


def _unpack(raw: Any, text: int, items: int, entries: int, binary: int = 256) -> Any:
    try:
        return _unpacked(raw, text, items, entries, binary)
    except UNPACKED as wrong:
        raise ProtocolError(f"not msgpack within the limits ({type(wrong).__name__})") from None


@dataclass(frozen=True, slots=True)
class Terms:
    """The payload of Welcome.

    workload: description of the job, plain data. layout: of the weights. coding: of changes of the weights; None: weights
    travel whole. briefs: layouts that tasks' own arrays may have.
    """

    workload: Mapping[str, Any]
    layout: Layout
    coding: Coding | First | None = None
    briefs: Sequence[Layout] = ()


def pack_welcome(terms: Terms) -> bytes:
    coding = terms.coding.row() if terms.coding else None
    packed: bytes = msgpack.packb([terms.workload, terms.layout.rows(), coding, [one.rows() for one in terms.briefs]])
    if len(packed) > MAX_WELCOME:
        raise ProtocolError(f"workload and layout take {len(packed)} bytes, more than {MAX_WELCOME}")
    return packed


def unpack_welcome(payload: Any) -> Terms:
    if len(payload) > MAX_WELCOME:
        raise ProtocolError(f"workload and layout take {len(payload)} bytes, more than {MAX_WELCOME}")
    match _unpack(payload, 65_536, 65_536, 4_096):
        case [dict() as workload, list() as rows, coding, list() as briefs]:
            told = None if coding is None else agreed(coding)
            return Terms(workload, Layout.from_rows(rows), told, [Layout.from_rows(one) for one in briefs])
    raise ProtocolError("a Welcome's payload is [workload, layout of the weights, coding or nil, layouts of briefs]")
