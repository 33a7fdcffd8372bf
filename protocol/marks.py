"""A note of each process of what it does, that outlives the process.

The one idea: a process that ends in a microsecond says nothing, but what it wrote to memory that its parent has too is still
there. So of all that it was given, only the call that it was at is blamed.
"""

from __future__ import annotations

import mmap
import os

SLOTS, WORDS = 4_096, 8  # processes that live at a time, at most; int64 of each: a cache line
PID, VERSION, INDEX, CLIENT, CLAIMED, STOP = range(6)
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
        self._mine[CLAIMED] = self._mine[STOP] = 0
        self._mine[INDEX], self._mine[PID] = -1, os.getpid()

    def note(self, version: int, index: int, client: int) -> None:
        """Write down that this process begins work for this client of a task."""
        mine = self._mine
        mine[VERSION], mine[CLIENT], mine[INDEX] = version, client, index

    def ran(self, pid: int) -> tuple[int, ...]:
        """(version, index, client) of the work that a process began last; () if it began none."""
        row = self._row(pid)
        return (row[VERSION], row[INDEX], row[CLIENT]) if row and row[INDEX] >= 0 else ()

    def claim(self, many: int) -> bool:
        """Write down that so many calls of a piece will have begun next. Returns whether the piece may go on after these.

        The one who stops a piece writes, waits until what was written before is seen everywhere, and reads what was claimed: no
        call behind that begins here.
        """
        mine = self._mine
        mine[CLAIMED] = many
        return not mine[STOP]

    def end_piece(self) -> None:
        """Forget what was claimed, for the next piece of this process."""
        self._mine[CLAIMED] = self._mine[STOP] = 0

    def stop(self, pid: int) -> None:
        """Let a process begin no further call of its piece than it has claimed."""
        if row := self._row(pid):
            row[STOP] = 1

    def claimed(self, pid: int) -> int:
        """The number of calls of its piece that a process has claimed; 0: none, or it is at no piece."""
        row = self._row(pid)
        return row[CLAIMED] if row else 0

    def _row(self, pid: int) -> memoryview | None:
        for first in range(0, SLOTS * WORDS, WORDS):
            if self._rows[first] == pid:
                return self._rows[first : first + WORDS]
        return None

    def cancel(self, number: int) -> None:
        """Ask the process that is at a call, or will be, to give it up. number: of the call. A call's flag is forgotten if
        another is asked for whose number is FLAGS greater or less."""
        self._flags[number % FLAGS] = number + 1

    def cancelled(self, number: int) -> bool:
        """Return whether somebody asked to give up this call."""
        return self._flags[number % FLAGS] == number + 1
