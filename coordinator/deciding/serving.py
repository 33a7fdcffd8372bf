"""Weights that actors fetch piece by piece: the versions, and changes between versions, that can still be had.

The one idea: arrays stay for as long as an actor fetches them, so that a slow link gets to the end of a fetch; but at most KEPT
arrays of older versions stay, and the arrays that were asked for longest ago go first.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

from shoal.protocol.fetching import MOST

KEPT = 2  # most arrays of older versions, beside those of the newest
What: TypeAlias = tuple[int, ...]
"""(version,): whole weights; (version, base): the changes from `base` to `version`; as in Want."""


class Sized(Protocol):
    """Arrays, as the deciding half sees them: a number of bytes, and contents never looked into."""

    @property
    def nbytes(self) -> int: ...


class Serving:
    """The sessions that fetch weights, and the arrays that each of them fetches."""

    def __init__(self) -> None:
        self._kept: dict[What, Sized] = {}  # those asked for longest ago first
        self._readers: dict[bytes, What] = {}  # session -> arrays that it fetches
        self._newest = -1

    def publish(self, version: int) -> None:
        """Make this version the newest; sessions may still be fetching others."""
        self._newest = version
        self._tidy()

    def begin(self, session: bytes, what: What, arrays: Sized) -> None:
        """Keep these arrays of the newest version for a session that is told of them and will fetch them."""
        self._readers[session] = what
        self._kept.setdefault(what, arrays)

    def end(self, session: bytes, version: int | None) -> None:
        """End the session's fetch of this version, which the session has; of any version if None: the session is gone."""
        what = self._readers.get(session)
        if what is not None and version in (None, what[0]):
            del self._readers[session]
            self._tidy()

    def wanted(self, session: bytes, what: What, first: int, last: int) -> Sized | None:
        """Return the arrays of which a session wants the bytes from `first` to before `last`; None if the session was not told
        of them, they cannot be had any more, or the range is not theirs."""
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
