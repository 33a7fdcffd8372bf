"""Weights that actors fetch piece by piece: which versions are still to be had, and which changes of them.

The one idea: a version stays for as long as an actor fetches it, so that a slow link gets to the end of what it has begun; but
only so many versions do, and one whose readers have stopped asking goes first.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

from shoal.protocol.fetching import MOST

KEPT = 2  # beside what is of the newest version
What: TypeAlias = tuple[int, ...]
"""(version,) or (version, base), as in Want."""


class Sized(Protocol):
    """Arrays, as the deciding half sees them: so many bytes, and nothing that it looks into."""

    @property
    def nbytes(self) -> int: ...


class Serving:
    """Who fetches what, and the arrays for it."""

    def __init__(self) -> None:
        self._kept: dict[What, Sized] = {}  # by when they were wanted last
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

    def begin(self, session: bytes, what: What, arrays: Sized) -> None:
        """The session is told of these, which are of the newest version, and will fetch them."""
        self._readers[session] = what
        self._kept.setdefault(what, arrays)

    def end(self, session: bytes, version: int) -> None:
        """The session has this version."""
        if (what := self._readers.get(session)) is not None and what[0] == version:
            del self._readers[session]
            self._tidy()

    def wanted(self, session: bytes, what: What, first: int, last: int) -> Sized | None:
        """The arrays of which a session wants the bytes from `first` to before `last`; None where it was not told of them, or
        they are not to be had any more."""
        arrays = self._kept.get(what)
        if arrays is None or self._readers.get(session) != what:
            return None
        if not 0 <= first <= last <= min(arrays.nbytes, first + MOST):
            return None
        self._kept[what] = self._kept.pop(what)
        return arrays

    def _tidy(self) -> None:
        wanted = set(self._readers.values())
        self._kept = {what: arrays for what, arrays in self._kept.items() if what in wanted}
        old = [what for what in self._kept if what[0] != self._newest]
        for what in old[: max(0, len(old) - KEPT)]:
            del self._kept[what]
