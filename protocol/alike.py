"""Large buffers that several calls have, each of which lies in shared memory once.

The one idea: two buffers are the same if their bytes are. A few of the bytes find the one that may be the same, and a
comparison of all, which costs a third of a copy, decides. So it does not matter whether a program gives an array twice or two
equal ones, and an array that was written between two calls is another one.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from shoal.protocol.shared import Segment

if TYPE_CHECKING:
    from shoal.protocol.layout import Bytes

LEAST = 1 << 17  # bytes of a buffer that is looked for, at least
LOOKED_AT = 64  # words of a buffer by which the one that may be the same is found
BLOCK = 1 << 20  # bytes that are compared at once
Key: TypeAlias = tuple[int, bytes]
Place: TypeAlias = tuple[Segment, int]
"""A segment, and the first byte of a buffer in it."""


class Alike:
    """The buffers in segments that somebody holds. Used by any thread."""

    def __init__(self) -> None:
        self._places: dict[Key, tuple[weakref.ref[Segment], int]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def find(self, buffer: memoryview) -> Place | None:
        """A place that has these bytes; None if none is known."""
        if buffer.nbytes < LEAST:
            return None
        import numpy as np  # who has no large buffers needs none

        data = np.frombuffer(buffer, np.uint8)
        known = self._places.get(_key(data))
        if known is None or (segment := known[0]()) is None:
            return None
        there = segment.data[known[1] : known[1] + data.nbytes]
        return (segment, known[1]) if _same(data, there) else None

    def add(self, segment: Segment, placed: Sequence[tuple[int, memoryview]]) -> None:
        """Take in a segment, which nobody writes any more. placed: first byte and bytes of each buffer in it."""
        for at, buffer in placed:
            if buffer.nbytes >= LEAST:
                key = _key(segment.data[at : at + buffer.nbytes])
                self._places[key] = (weakref.ref(segment, partial(_forget, weakref.ref(self), key)), at)

    def forget(self, key: Key, gone: weakref.ref[Segment]) -> None:
        if (known := self._places.get(key)) is not None and known[0] is gone:
            del self._places[key]


def _forget(alike: weakref.ref[Alike], key: Key, gone: weakref.ref[Segment]) -> None:
    if its := alike():
        its.forget(key, gone)


def _key(data: Bytes) -> Key:
    import numpy as np

    words = data[: data.nbytes // 8 * 8].view(np.uint64)
    return data.nbytes, words[:: max(1, len(words) // LOOKED_AT)].tobytes()


def _same(one: Bytes, other: Bytes) -> bool:
    if one.nbytes != other.nbytes:
        return False
    import numpy as np

    whole = one.nbytes // 8 * 8
    for at in range(0, whole, BLOCK):
        end = min(at + BLOCK, whole)
        if not np.array_equal(one[at:end].view(np.uint64), other[at:end].view(np.uint64)):
            return False
    return bool(np.array_equal(one[whole:], other[whole:]))
