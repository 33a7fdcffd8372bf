"""Calls for an actor, and their answers, as one run of bytes.

The one idea: a function is in the bytes once for all calls of it. Functions, arguments and results are parcels (trusted.py)
that this module does not open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack
import numpy as np

from shoal.protocol.layout import Bundle, Layout


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


def _bundle(packed: bytes) -> Bundle:
    return Bundle(Layout.run(len(packed)), np.frombuffer(packed, np.uint8))


def _unpacked(bundle: Bundle) -> Any:
    data = bundle.data
    return msgpack.unpackb(data.data, max_bin_len=data.nbytes, max_array_len=data.nbytes)
