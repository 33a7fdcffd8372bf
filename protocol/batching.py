"""The queue of requests in front of a model, which makes batches of them.

The one idea: a request waits for company only while the model is busy, or was a moment ago with several requests about. A
request of a client that asks alone begins at once, so a server with little to do adds no time. The queue and a batch are
bounded in rows, which is what a model computes on, and not in requests.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class Waiting(Generic[T]):
    """A request that waits. arrived, due: seconds of the clock; due is its deadline (inf: none). behind: True if the model was
    busy when the request came, or had been within `max_wait`."""

    item: T
    rows: int
    arrived: float
    due: float
    behind: bool


@dataclass(slots=True)
class Turn(Generic[T]):
    """A queue's next step. lane: name of the queue that `batch` is from. batch: requests to compute together; []: none. late:
    requests whose deadline is over, which are answered and not computed. again: time at which to ask again (inf: when a request
    comes)."""

    lane: str = ""
    batch: list[T] = field(default_factory=list)
    rows: int = 0
    late: list[T] = field(default_factory=list)
    again: float = math.inf


class Queue(Generic[T]):
    """Requests in the order in which they came, a lane for each model. All lanes share one processor, so one batch is computed
    at a time. Times (`now`) are in seconds of a clock that never goes back.

    max_batch: rows of a batch, at most. max_wait: seconds that a request, which came while the model was busy, waits for more
    requests, at most. It waits for no more requests than were about at the end of the last batch: those of that batch, and
    those that waited by then. most: rows that wait in a lane, at most. min_batch: rows for which a request waits in any case,
    also while the model is idle, for max_wait at most. A lane is added when it is first offered a request.
    """

    def __init__(self, lanes: Sequence[str], max_batch: int, max_wait: float, most: int, min_batch: int = 0) -> None:
        self.max_batch, self.max_wait, self.most, self.min_batch = max_batch, max_wait, most, min_batch
        self.lanes: dict[str, deque[Waiting[T]]] = {lane: deque() for lane in lanes}
        self.rows = dict.fromkeys(lanes, 0)
        self.busy = False
        self.about = dict.fromkeys(lanes, 1)  # requests that were about at the end of the lane's last batch
        self._computed = ("", 0)  # lane of the last batch, and its number of requests
        self._ended = -math.inf

    def offer(self, lane: str, item: T, rows: int, now: float, due: float = math.inf) -> tuple[str, list[T]]:
        """Add a request. Returns why it is refused ("": it waits now), and requests that were found to be late."""
        late: list[T] = []
        if lane not in self.lanes:
            self.lanes[lane], self.rows[lane], self.about[lane] = deque(), 0, 1
        if self.rows[lane] + rows > self.most:
            late = self.drop_late(lane, now)
        if self.rows[lane] + rows > self.most:
            return f"the queue is full: {self.rows[lane]:,} rows wait, of at most {self.most:,}; try again", late
        self.lanes[lane].append(Waiting(item, rows, now, due, self.busy or now - self._ended <= self.max_wait))
        self.rows[lane] += rows
        return "", late

    def forget(self, lane: str) -> None:
        """Drop a lane in which no request waits."""
        if not self.lanes.get(lane) and self._computed[0] != lane:
            for each in (self.lanes, self.rows, self.about):
                each.pop(lane, None)

    def drop_late(self, lane: str, now: float) -> list[T]:
        """Take out the requests of a lane whose deadline is over."""
        late = [one for one in self.lanes[lane] if one.due <= now]
        if late:
            self.lanes[lane] = deque(one for one in self.lanes[lane] if one.due > now)
            self.rows[lane] -= sum(one.rows for one in late)
        return [one.item for one in late]

    def turn(self, now: float, draining: bool = False) -> Turn[T]:
        """The next batch, of the lane whose oldest request has waited longest. Asked while no batch is computed; `done` follows
        a batch. draining: no more requests come, so none waits for company."""
        if self.busy:
            lane, many = self._computed
            self.busy, self._ended, self.about[lane] = False, now, many + len(self.lanes[lane])
        turn: Turn[T] = Turn()
        for lane in sorted((lane for lane in self.lanes if self.lanes[lane]), key=lambda lane: self.lanes[lane][0].arrived):
            self._take(lane, turn, now, draining)
            if turn.batch:
                self.busy, self._computed = True, (lane, len(turn.batch))
                return turn
        return turn

    def _take(self, lane: str, turn: Turn[T], now: float, draining: bool) -> None:
        waiting = self.lanes[lane]
        few = self.rows[lane] < self.max_batch and len(waiting) < self.about[lane] and waiting[0].behind
        if (few or self.rows[lane] < self.min_batch) and not draining:
            ready_at = min(waiting[0].arrived + self.max_wait, waiting[0].due)
            if now < ready_at:
                turn.again = min(turn.again, ready_at)
                return
        turn.lane = lane
        while waiting and (waiting[0].due <= now or turn.rows + waiting[0].rows <= self.max_batch):
            one = waiting.popleft()
            self.rows[lane] -= one.rows
            if one.due <= now:
                turn.late.append(one.item)
            else:
                turn.batch.append(one.item)
                turn.rows += one.rows

    def __len__(self) -> int:
        return sum(map(len, self.lanes.values()))
