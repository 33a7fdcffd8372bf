"""Arrays that come to an actor in pieces: weights, changes of weights, and briefs of tasks.

The one idea: one of them is fetched at a time, and the one that was told of first goes first; so none is starved by the others.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

from shoal.protocol.fetching import Fetch, Way, to_go
from shoal.protocol.messages import Want

What: TypeAlias = tuple[int, ...]
"""(version,), (version, base), or (version, index, attempt), as in Want."""


@dataclass(slots=True)
class Transfer:
    """What is fetched, or waits for its turn. moved_at: when its turn came, or a piece of it came last."""

    what: What
    nbytes: int
    fetch: Fetch
    moved_at: float

    def __str__(self) -> str:
        name = f"weights {self.what[0]}" if len(self.what) < 3 else f"brief of task {self.what[:2]}"
        return f"{name}: {to_go(self.fetch.left, self.nbytes)}"


class Fetching:
    """Everything that an actor has to fetch. Times are in seconds of a clock that never goes back."""

    def __init__(self) -> None:
        self.way = Way()
        self.queue: deque[Transfer] = deque()

    @property
    def first(self) -> Transfer | None:
        """What is fetched now."""
        return self.queue[0] if self.queue else None

    def begin(self, what: What, nbytes: int, now: float) -> bool:
        """False if it is on its way already: it goes on where it is."""
        if any((one.what, one.nbytes) == (what, nbytes) for one in self.queue):
            return False
        self.queue.append(Transfer(what, nbytes, Fetch(nbytes, self.way), now))
        return True

    def drop(self, what: What) -> None:
        self.queue = deque(one for one in self.queue if one.what != what)

    def weights(self) -> list[What]:
        """The weights that are on their way, or what changed in them."""
        return [one.what for one in self.queue if len(one.what) < 3]

    def cut(self) -> None:
        """The connection is another one: nothing that is under way will come."""
        if self.queue:
            self.queue[0].fetch.cut()

    def ask(self, now: float) -> list[Want]:
        """What to ask for now."""
        return [Want(one.what, *piece) for one in list(self.queue)[:1] for piece in one.fetch.ask(now)]

    def came(self, what: What, first: int, last: int, now: float) -> Transfer | None:
        """A piece came: of what, if it was asked for. When nothing more is to come of that, the next has its turn."""
        one = self.first
        if one is None or one.what != what or not one.fetch.arrived(first, last, now):
            return None
        one.moved_at = now
        if not one.fetch.left:
            self.queue.popleft()
            if self.queue:
                self.queue[0].moved_at = now
        return one
