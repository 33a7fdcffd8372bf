"""Calls for an actor, and their answers, as one run of bytes.

The one idea: a function is in the bytes once for all calls of it. Functions, arguments and results are parcels (trusted.py)
that this module does not open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

if TYPE_CHECKING:
    from shoal.protocol.layout import Bundle


class Call(NamedTuple):
    """A call. ticket: its number. function, arguments: parcels."""

    ticket: int
    function: bytes
    arguments: bytes


class Answer(NamedTuple):
    """The result of a call. raised: `parcel` is of an exception and its traceback as text. seconds: that the call took. nbytes:
    bytes of the result, shared memory included."""

    ticket: int
    raised: bool
    parcel: bytes
    seconds: float
    nbytes: int


def pack_calls(calls: Sequence[Call]) -> Bundle:
    places: dict[bytes, int] = {}
    rows = [(one.ticket, places.setdefault(one.function, len(places)), one.arguments) for one in calls]
    return _bundle(msgpack.packb((list(places), rows)))


def read_calls(bundle: Bundle) -> list[Call]:
    functions, rows = _unpacked(bundle)
    return [Call(ticket, functions[at], arguments) for ticket, at, arguments in rows]


def pack_answers(answers: Sequence[Answer]) -> Bundle:
    return _bundle(msgpack.packb(answers))


def read_answers(bundle: Bundle) -> list[Answer]:
    return [Answer(*row) for row in _unpacked(bundle)]


def pack_task(index: int, words: Mapping[str, Any], certain: int, calls: Sequence[Call]) -> bytes:
    """A task for an actor of this machine: its index, words, calls that it may begin without a token, and all its calls."""
    places: dict[bytes, int] = {}
    rows = [(one.ticket, places.setdefault(one.function, len(places)), one.arguments) for one in calls]
    packed: bytes = msgpack.packb((index, words, certain, list(places), rows))
    return packed


def read_task(data: Any) -> tuple[int, Mapping[str, Any], int, list[Call]]:
    index, words, certain, functions, rows = msgpack.unpackb(data, max_bin_len=len(data), max_array_len=len(data))
    return index, words, certain, [Call(ticket, functions[at], arguments) for ticket, at, arguments in rows]


def _bundle(packed: bytes) -> Bundle:
    import numpy as np

    from shoal.protocol.layout import Bundle, Layout

    return Bundle(Layout.run(len(packed)), np.frombuffer(packed, np.uint8))


def _unpacked(bundle: Bundle) -> Any:
    data = bundle.data
    return msgpack.unpackb(data.data, max_bin_len=data.nbytes, max_array_len=data.nbytes)
