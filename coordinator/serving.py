"""Weights that are fetched piece by piece: which versions are still to be had, and which changes of them.

The one idea: a version stays for as long as somebody fetches it, so that a slow link gets to the end of what it has begun; but
only so many do, and one whose readers have stopped asking goes first.
"""

from __future__ import annotations

from typing import TypeAlias

from shoal.protocol.fetching import MOST
from shoal.protocol.layout import Bytes
from shoal.protocol.link import Part

KEPT = 2  # beside what is of the newest version
What: TypeAlias = tuple[int, ...]
"""(version,) or (version, base), as in Want."""


class Serving:
    """Used by the socket thread alone."""

    def __init__(self) -> None:
        self._kept: dict[What, Bytes] = {}  # by when they were wanted last
        self._readers: dict[bytes, What] = {}  # session -> what it fetches
        self._newest = -1

    def publish(self, version: int) -> None:
        """This version is the newest; sessions may still be fetching others."""
        self._newest = version
        self._tidy()

    def gone(self, session: bytes) -> None:
        """This session fetches nothing any more."""
        if self._readers.pop(session, None):
            self._tidy()

    def begin(self, session: bytes, what: What, data: Bytes) -> None:
        """It is told of these, which are of the newest version, and will fetch them."""
        self._readers[session] = what
        self._kept.setdefault(what, data)

    def end(self, session: bytes, version: int) -> None:
        """It has this version."""
        if (what := self._readers.get(session)) is not None and what[0] == version:
            del self._readers[session]
            self._tidy()

    def part(self, session: bytes, what: What, first: int, last: int) -> Part | None:
        """Some bytes for one who was told of them; None where they are not to be had (any more)."""
        data = self._kept.get(what)
        if data is None or self._readers.get(session) != what:
            return None
        if not 0 <= first <= last <= min(data.nbytes, first + MOST):
            return None
        self._kept[what] = self._kept.pop(what)
        return Part(data, first, last)

    def _tidy(self) -> None:
        wanted = set(self._readers.values())
        self._kept = {what: data for what, data in self._kept.items() if what in wanted}
        old = [what for what in self._kept if what[0] != self._newest]
        for what in old[: max(0, len(old) - KEPT)]:
            del self._kept[what]
