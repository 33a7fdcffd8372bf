"""The progress of a pool, as one line on a terminal.

The one idea: only a person at a terminal is told, and only of work that lasts. So nothing is written into files, pipes and
notebooks, nothing for calls that are done within AFTER seconds, and the line is wiped when no call is left.
"""

from __future__ import annotations

import os
import select
import sys
from dataclasses import dataclass
from typing import Protocol

AFTER = 2.0  # seconds of work before anything is said
EVERY = 0.5  # seconds between two lines, at least
WIPE = "\r\x1b[K"


@dataclass(slots=True)
class Tally:
    """The calls of one map. done: of `many`; both are written by the map alone."""

    many: int
    done: int = 0


class Screen(Protocol):
    """A terminal. `fits`: the columns of a line; `write` may leave a text out if the terminal takes none now."""

    def fits(self) -> int: ...

    def write(self, text: str) -> None: ...


class Terminal:
    """The terminal of standard error."""

    def fits(self) -> int:
        try:
            return os.get_terminal_size(sys.stderr.fileno()).columns
        except (OSError, ValueError):
            return 80

    def write(self, text: str) -> None:
        """Write a text, unless the terminal is held (Ctrl-S): a pool waits for no terminal."""
        try:
            if select.select([], [sys.stderr], [], 0)[1]:
                sys.stderr.write(text)
                sys.stderr.flush()
        except (OSError, ValueError):  # the program has closed it
            pass


def terminal() -> Terminal | None:
    """The terminal of standard error; None if it is none."""
    try:
        return Terminal() if sys.stderr.isatty() else None
    except (AttributeError, ValueError):  # there is no standard error, or it is closed
        return None


class Meter:
    """screen: where lines go. singles: calls since the pool last had none, beside those of maps that count their own.
    Times are in seconds of a clock that never goes back."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self.singles = 0
        self.tallies: list[Tally] = []
        self._since: float | None = None
        self._at = 0.0
        self._shown = False

    def due(self, now: float) -> bool:
        """Return whether it is time for `look`."""
        return now >= self._at

    def look(self, now: float, left: int, busy: int, actors: int) -> None:
        """Say how far the pool is. left: of `singles`, the calls that are not done. busy: actors that have calls."""
        self._at = now + EVERY
        if self._since is None:
            self._since = now
        many = self.singles + sum(one.many for one in self.tallies)
        done = self.singles - left + sum(one.done for one in self.tallies)
        if many and now - self._since >= AFTER:
            self._shown = True
            self._screen.write(f"{WIPE}{line(done, many, now - self._since, busy, actors)[: self._screen.fits() - 1]}")

    def rest(self) -> None:
        """Take in that no call is left: wipe the line, and count from 0."""
        if self._shown:
            self._screen.write(WIPE)
        self._shown, self._since, self.singles = False, None, 0
        self.tallies.clear()


def line(done: int, many: int, seconds: float, busy: int, actors: int) -> str:
    """The progress of a pool, in words."""
    rest = f", about {span(seconds * (many - done) / done)} left" if 0 < done < many else ""
    return f"{done:,} of {many:,} calls in {span(seconds)}{rest}; {busy} of {actors} actors busy"


def span(seconds: float) -> str:
    """Seconds as a person says them: "12 s", "3 min", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
