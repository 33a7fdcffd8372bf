"""Arrays that come to an actor in pieces: weights, changes of weights, and briefs of tasks.

The one idea: an actor fetches one transfer at a time, in the order in which the coordinator announced them; so none is starved.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

from shoal.protocol.fetching import Fetch, Way, to_go
from shoal.protocol.messages import Want

What: TypeAlias = tuple[int, ...]
"""The name of arrays, as in Want: (version,) of weights; (version, base) of a change; (version, index, attempt) of a brief."""


@dataclass(slots=True)
class Transfer:
    """Arrays that are being fetched, or wait for their turn. moved_at: when the turn came, or the last piece came."""

    what: What
    nbytes: int
    fetch: Fetch
    moved_at: float

    def __str__(self) -> str:
        name = f"weights {self.what[0]}" if len(self.what) < 3 else f"brief of task {self.what[:2]}"
        return f"{name}: {to_go(self.fetch.left, self.nbytes)}"


class Fetching:
    """The arrays that an actor has to fetch. Times are in seconds of a clock that never goes back."""

    def __init__(self) -> None:
        self.way = Way()
        self.queue: deque[Transfer] = deque()

    @property
    def first(self) -> Transfer | None:
        """The transfer that is being fetched now; None if there is nothing to fetch."""
        return self.queue[0] if self.queue else None

    def begin(self, what: What, nbytes: int, now: float) -> None:
        """Add a transfer, which is not in the queue."""
        self.queue.append(Transfer(what, nbytes, Fetch(nbytes, self.way), now))

    def drop(self, what: What) -> None:
        self.queue = deque(one for one in self.queue if one.what != what)

    def weights(self) -> list[What]:
        """The names of the weights, or changes of weights, in the queue."""
        return [one.what for one in self.queue if len(one.what) < 3]

    def cut(self) -> None:
        """Forget which pieces are under way. Called for a new connection, on which none of them will come."""
        if self.queue:
            self.queue[0].fetch.cut()

    def ask(self, now: float) -> list[Want]:
        """The pieces to ask the coordinator for now."""
        return [Want(one.what, *piece) for one in list(self.queue)[:1] for piece in one.fetch.ask(now)]

    def came(self, what: What, first: int, last: int, now: float) -> Transfer | None:
        """The transfer that a piece belongs to; None if the piece was not asked for. After a transfer's last piece the next
        transfer has its turn."""
        one = self.first
        if one is None or one.what != what or not one.fetch.arrived(first, last, now):
            return None
        one.moved_at = now
        if not one.fetch.left:
            self.queue.popleft()
            if self.queue:
                self.queue[0].moved_at = now
        return one
