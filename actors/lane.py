"""The actor's line for arrays that are too large to go with their message.

The one idea: the line for arrays is opened when it is first needed, so that an actor of a small model costs one connection and
not two. Arrays on this line never delay a message on the other line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from shoal.protocol.door import ClientKeys
from shoal.protocol.link import Arrival, Line, Payload
from shoal.protocol.messages import Envelope


class Lane:
    """The line for arrays, beside `line`. `line.wait` waits for both, and `line` is closed after this one."""

    def __init__(self, line: Line, keys: ClientKeys | None, clock: Callable[[], float]) -> None:
        self._beside, self._keys, self._clock = line, keys, clock
        self._line: Line | None = None

    def drain(self) -> Iterator[Arrival]:
        return self._line.drain() if self._line else iter(())

    def say(self, envelope: Envelope, payload: Payload | None = None) -> None:
        if self._line is None:
            self._line = Line(self._beside.address, self._keys, self._clock, self._beside)
        self._line.say(envelope, payload)

    def flush(self) -> None:
        if self._line:
            self._line.flush()

    def close(self) -> None:
        if self._line:
            self._line.close()
