"""The versions of one model that a server holds: the version that answers, the versions before it, and the refused ones.

The one idea: a version is made ready and checked aside, and serving it is one assignment. A batch reads `serving` once, at its
beginning, so its answers are of one version.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from shoal.protocol.errors import UserError

M = TypeVar("M")

KEPT = 3  # versions that are held, for a rollback, beside a pinned one
TOLD = 8  # refused versions that are remembered


@dataclass(frozen=True, slots=True)
class Ready(Generic[M]):
    """A version that is ready to answer."""

    version: int
    model: M


class Book(Generic[M]):
    """The versions of one model. name: the model's. swaps: number of times that another version began to answer."""

    def __init__(self, name: str, kept: int = KEPT) -> None:
        self.name, self.kept = name, kept
        self.serving: Ready[M] | None = None
        self.held: dict[int, Ready[M]] = {}  # in the order in which they were taken
        self.refused: deque[tuple[int, str]] = deque(maxlen=TOLD)
        self.refusals = self.swaps = 0
        self.pinned: int | None = None

    @property
    def newest(self) -> Ready[M] | None:
        """The version that was taken last."""
        return next(reversed(self.held.values()), None)

    def wants(self, version: int) -> bool:
        """True if a version that came is to be made ready. A lower number may be new: a coordinator that starts again may have
        lost the versions after its last snapshot."""
        newest = self.newest
        return (newest is None or newest.version != version) and not (self.refused and self.refused[-1][0] == version)

    def take(self, version: int, model: M) -> None:
        """Take a version that was checked. It answers from now on, unless another version is pinned."""
        self.held.pop(version, None)
        self.held[version] = ready = Ready(version, model)
        self.refused = deque((one for one in self.refused if one[0] != version), maxlen=TOLD)
        if self.pinned is None:
            self._serve(ready)
        self._drop()

    def refuse(self, version: int, why: str) -> None:
        """Note a version that failed its check: the version before goes on."""
        self.refused.append((version, why))
        self.refusals += 1

    def pin(self, version: int) -> None:
        """Serve this version, and stay with it. Raises UserError if it is not held."""
        if (ready := self.held.get(version)) is None:
            raise UserError(f"version {version} of {self.name} is not held here: held are {self._told()}")
        self.pinned = version
        self._serve(ready)

    def unpin(self) -> None:
        """Serve the newest version, and follow again."""
        self.pinned = None
        if self.newest is not None:
            self._serve(self.newest)
        self._drop()

    def before(self) -> int:
        """The version that a rollback leads to: the one taken before the one that answers. Raises UserError if none is held."""
        versions = list(self.held)
        at = versions.index(self.serving.version) if self.serving and self.serving.version in versions else 0
        if at < 1:
            raise UserError(f"no version of {self.name} before the one that answers is held here: held are {self._told()}")
        return versions[at - 1]

    def _serve(self, ready: Ready[M]) -> None:
        if self.serving is not ready:
            self.swaps += self.serving is not None
            self.serving = ready

    def _drop(self) -> None:
        for version in list(self.held)[: -self.kept]:
            if version != self.pinned:
                del self.held[version]

    def _told(self) -> str:
        return ", ".join(map(str, self.held)) or "none"
