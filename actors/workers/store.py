"""Values that many calls of a pool elsewhere need, kept on this machine once.

The one idea: a value has the digest of its bytes for a name, so it does not matter who gives the bytes: the pool, or another
actor of this machine, which has them in shared memory already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from shoal.protocol import values
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.layout import Bytes
from shoal.protocol.plaincalls import PlainCall, Told
from shoal.protocol.shared import Segment

SAID = 24  # values of which an actor says where they lie, the newest: as many as fit into a sign of life


def name_of(data: Any) -> str:
    """The name of a value, by its bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class Store:
    """The values by name. One thread changes them; `handles` is for any."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[Segment | None, Bytes]] = {}

    def take(self, told: Iterable[Told]) -> list[str]:
        """Keep, open and drop what the pool says. Returns the names of values that do not lie where it said. Raises
        ProtocolError for bytes that are another value's."""
        lacking = []
        for one in told:
            if one.how == "drop":
                self._held.pop(one.name, None)
            elif one.how == "bytes":
                if name_of(one.data) != one.name:
                    raise ProtocolError("the pool sent a value under another value's name")
                self._held[one.name] = _kept(one.data)
            elif one.name not in self._held:
                try:
                    self._held[one.name] = _opened(one)
                except ProtocolError:
                    lacking.append(one.name)
        return lacking

    def handles(self) -> list[list[Any]]:
        """Rows of name and handle of values that lie in shared memory here."""
        held = [[name, *segment.handle] for name, (segment, _) in list(self._held.items()) if segment]
        return held[-SAID:]

    def filled(self, call: PlainCall) -> PlainCall:
        """A call with the values that it needs at their places. Its arrays of these cannot be written. Raises ProtocolError."""
        args, kwargs = list(call.args), dict(call.kwargs)
        for name, where, at in call.puts:
            if name not in self._held:
                raise ProtocolError("a call needs a value that the pool has not sent")
            value = values.read(self._held[name][1], writable=False)
            into: Any = args if isinstance(where, int) else kwargs
            if at < 0:
                into[where] = value
            else:
                row = list(into[where])
                row[at] = value
                into[where] = type(into[where])(row)
        return call._replace(args=args, kwargs=kwargs)


def _kept(data: Bytes) -> tuple[Segment | None, Bytes]:
    try:
        segment = Segment.create(data.nbytes, parts=[(0, data.data)])
    except UserError:  # there is no shared memory without a name: other actors of this machine get bytes of their own
        return None, np.array(data)
    return segment, segment.mapped(private=False)


def _opened(told: Told) -> tuple[Segment | None, Bytes]:
    """The value at a handle. Raises ProtocolError if there is none, or another."""
    segment = Segment.open(told.handle, hold=True)
    data = segment.mapped(private=False)
    if name_of(data) != told.name:
        segment.close()
        raise ProtocolError("another value lies there")
    return segment, data
