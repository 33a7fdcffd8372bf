"""The number of connections that each key has at a socket, which ZeroMQ does not tell.

The one idea: the descriptor of an accepted connection is known from its beginning to its end, and the key of a descriptor from
its first message on. A connection that has said nothing belongs to one of the keys that were let in, and there are no more of
these than descriptors without a key.
"""

from __future__ import annotations

from collections import Counter


class Callers:
    """The connections of one socket, in the order of ZeroMQ's own events. A descriptor may be used again after its end."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._keys: dict[int, str] = {}  # descriptor -> key of the messages that come from it
        self._spoke: Counter[str] = Counter()  # key -> descriptors in _keys
        self._silent: Counter[str] = Counter()  # key -> connections that were let in, and of which no message is known

    def began(self, descriptor: int) -> None:
        self._open.add(descriptor)

    def ended(self, descriptor: int) -> None:
        self._open.discard(descriptor)
        if (key := self._keys.pop(descriptor, None)) is not None:
            self._drop(key)
        if len(self._open) <= len(self._keys):
            self._silent.clear()

    def let_in(self, key: str) -> None:
        self._silent[key] += 1

    def spoke(self, key: str, descriptor: int) -> None:
        """Take the first message of a connection, whose end may be known already."""
        before = self._keys.get(descriptor)
        if before == key:
            return
        if self._silent[key] > 0:
            self._silent[key] -= 1
        if descriptor in self._open:
            if before is not None:
                self._drop(before)
            self._keys[descriptor] = key
            self._spoke[key] += 1

    def many(self, key: str) -> int:
        """Return the number of connections that a key has."""
        return self._spoke[key] + min(self._silent[key], len(self._open) - len(self._keys))

    def _drop(self, key: str) -> None:
        self._spoke[key] -= 1
        if not self._spoke[key]:
            del self._spoke[key]
