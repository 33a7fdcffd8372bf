"""Weights that are fetched piece by piece: which versions are still to be had.

The one idea: a version stays for as long as somebody fetches it, so that a slow link gets to the end of what it has begun; but
only so many do, and one whose readers have stopped asking goes first.
"""

from __future__ import annotations

from collections.abc import Collection

from shoal.protocol.fetching import MOST
from shoal.protocol.layout import Bundle
from shoal.protocol.link import Part

KEPT = 2  # versions beside the newest


class Serving:
    """Used by the socket thread alone."""

    def __init__(self) -> None:
        self._versions: dict[int, Bundle] = {}  # by when they were wanted last
        self._readers: dict[bytes, int] = {}  # session -> what it fetches
        self._newest = -1

    def publish(self, version: int, weights: Bundle, here: Collection[bytes]) -> None:
        """They are the newest. here: sessions that may still be fetching others."""
        self._readers = {session: its for session, its in self._readers.items() if session in here}
        self._newest = version
        self._versions[version] = weights
        self._tidy()

    def begin(self, session: bytes, version: int) -> None:
        """It is told of this version, the newest, and will fetch it."""
        self._readers[session] = version

    def end(self, session: bytes, version: int) -> None:
        """It has this version."""
        if self._readers.get(session) == version:
            del self._readers[session]
            if version != self._newest:
                self._tidy()

    def part(self, session: bytes, version: int, first: int, last: int) -> Part | None:
        """Some bytes for one who was told of them; None where they are not to be had (any more)."""
        weights = self._versions.get(version)
        if weights is None or self._readers.get(session) != version:
            return None
        if not 0 <= first <= last <= min(weights.data.nbytes, first + MOST):
            return None
        self._versions[version] = self._versions.pop(version)
        return Part(weights.data, first, last)

    def _tidy(self) -> None:
        wanted = {*self._readers.values(), self._newest}
        self._versions = {version: weights for version, weights in self._versions.items() if version in wanted}
        for version in list(self._versions):
            if len(self._versions) > KEPT + 1 and version != self._newest:
                del self._versions[version]
