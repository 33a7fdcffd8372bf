"""A note of each process of what it does, that outlives the process.

The one idea: a process that ends in a microsecond says nothing, but what it wrote to memory that its parent has too is still
there. So of all that it was given, only the call that it was at is blamed.
"""

from __future__ import annotations

import mmap
import os

SLOTS, WORDS = 4_096, 8  # processes that live at a time, at most; int64 of each: a cache line
PID, VERSION, INDEX, CLIENT = range(4)
FLAGS = 1 << 16  # calls whose end can be asked for at a time, at most; int64 of each


class Marks:
    """Memory that is shared with every process that is forked after it was made."""

    def __init__(self) -> None:
        self._rows = memoryview(mmap.mmap(-1, SLOTS * WORDS * 8)).cast("q")
        self._mine = self._rows[:WORDS]
        self._flags = memoryview(mmap.mmap(-1, FLAGS * 8)).cast("q")

    def begin(self, born: int) -> None:
        """Take a row for this process. born: processes that were forked before it."""
        first = born % SLOTS * WORDS
        self._mine = self._rows[first : first + WORDS]
        self._mine[INDEX], self._mine[PID] = -1, os.getpid()

    def note(self, version: int, index: int, client: int) -> None:
        """Write down that this process begins work for this client of a task."""
        mine = self._mine
        mine[VERSION], mine[CLIENT], mine[INDEX] = version, client, index

    def ran(self, pid: int) -> tuple[int, ...]:
        """(version, index, client) of the work that a process began last; () if it began none."""
        for first in range(0, SLOTS * WORDS, WORDS):
            if self._rows[first] == pid:
                row = self._rows[first : first + WORDS].tolist()
                return (row[VERSION], row[INDEX], row[CLIENT]) if row[INDEX] >= 0 else ()
        return ()

    def cancel(self, number: int) -> None:
        """Ask the process that is at a call, or will be, to give it up. number: of the call. A call's flag is forgotten if
        another is asked for whose number is FLAGS greater or less."""
        self._flags[number % FLAGS] = number + 1

    def cancelled(self, number: int) -> bool:
        """Return whether somebody asked to give up this call."""
        return self._flags[number % FLAGS] == number + 1
