"""Descriptors that a pool keeps for itself, for a program that holds all others.

The one idea: what a pool must do to go on (to take in a new process, to read an answer) takes a descriptor or two for a moment.
So it has these from the start, gives them up for that moment, and takes them again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

MANY = 3  # as many as an actor's line takes: a socket, and two ends of a pipe


class Reserve:
    """Used by one thread."""

    def __init__(self) -> None:
        self._held: list[int] = []
        self.full()

    def full(self) -> bool:
        """Take back what was given up. Returns False if the program has taken it meanwhile."""
        with suppress(OSError):
            while len(self._held) < MANY:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        return len(self._held) == MANY

    @contextmanager
    def lent(self, many: int = 2) -> Iterator[None]:
        """Give up some of them while something else takes descriptors."""
        self._give_up(many)
        try:
            yield
        finally:
            self.full()

    def spend(self, many: int) -> None:
        """Give up some of them for good, or until `full` can take them back."""
        self._give_up(many)

    def close(self) -> None:
        self._give_up(MANY)

    def _give_up(self, many: int) -> None:
        for descriptor in self._held[:many]:
            os.close(descriptor)
        del self._held[:many]
