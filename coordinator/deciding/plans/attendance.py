"""Attendance: the clients that can be asked now, and the times at which that changes.

The one idea: a plan asks three questions about clients (may this one be asked, which may be asked, when does that change), and
a trace of intervals answers them from the time alone.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TypeAlias

Intervals: TypeAlias = Sequence[tuple[float, float]]
"""Times [start, end) in seconds since the run began, in rising order and apart, in which a client can be asked."""


class Attendance:
    """The clients that can be asked, and the times at which each can be.

    clients: number of clients. traces: the intervals of each client, in seconds since the run began; None: all clients can be
    asked at any time. period: seconds after which the traces repeat (0: they do not). unfit: clients that are never asked.
    seconds: time that earlier lives of the run took, so that a resumed run goes on in its traces. origin: the `now` at which
    the run began; None: the first `now` that a method gets is that of the beginning of this life.
    """

    def __init__(
        self,
        clients: int,
        traces: Sequence[Intervals] | None = None,
        *,
        period: float = 0.0,
        unfit: frozenset[int] = frozenset(),
        seconds: float = 0.0,
        origin: float | None = None,
    ) -> None:
        self.traces, self.period, self.unfit, self.seconds = traces, period, unfit, seconds
        self.fit = [client for client in range(clients) if client not in unfit]
        self.starts = [[start for start, _ in each] for each in traces or ()]
        self.changes = sorted({time for client in self.fit for pair in traces[client] for time in pair}) if traces else []
        self.origin = origin

    @property
    def limits(self) -> bool:
        """Return whether there is a client that cannot be asked at every time."""
        return self.traces is not None or bool(self.unfit)

    def can(self, client: int, now: float) -> bool:
        """Return whether this client can be asked at `now`."""
        return client not in self.unfit and (self.traces is None or self._end(client, self._at(now)) >= 0)

    def among(self, now: float) -> Sequence[int]:
        """Return the clients that can be asked at `now`, in rising order."""
        if self.traces is None:
            return self.fit
        at = self._at(now)
        return [client for client in self.fit if self._end(client, at) >= 0]

    def change(self, now: float) -> float:
        """Return the first time after `now` at which a client comes or goes; inf if there is none."""
        at, start = self._at(now), now - self._at(now)
        if (found := bisect_right(self.changes, at)) < len(self.changes):
            return start + self.changes[found]
        return start + self.period + self.changes[0] if self.period and self.changes else math.inf

    def comes(self, client: int, now: float) -> float:
        """Return the first time from `now` on at which this client can be asked; inf if there is none."""
        if self.traces is None or self.can(client, now):
            return now
        at, starts = self._at(now), self.starts[client]
        if (found := bisect_right(starts, at)) < len(starts):
            return now - at + starts[found]
        return now - at + self.period + starts[0] if self.period and starts else math.inf

    def goes(self, client: int, now: float) -> float:
        """Return the time at which this client, which can be asked at `now`, goes away; inf if it stays."""
        if self.traces is None:
            return math.inf
        at = self._at(now)
        end = self._end(client, at)
        left = now - at + end
        again = self.period and end >= self.period and self.starts[client][0] == 0.0
        if again and self.traces[client][0][1] < self.period:  # the trace goes on at its own beginning
            return left + self.traces[client][0][1]
        return math.inf if again else left

    def most(self) -> int:
        """Return the largest number of clients that can be asked at one time."""
        if self.traces is None:
            return len(self.fit)
        steps: Counter[float] = Counter()
        for client in self.fit:
            for start, end in self.traces[client]:
                steps[start] += 1
                steps[end] -= 1
        return max(accumulate(steps[time] for time in sorted(steps)), default=0)

    def _at(self, now: float) -> float:
        """Return the time in the traces, in seconds."""
        if self.origin is None:
            self.origin = now - self.seconds
        at = now - self.origin
        return at % self.period if self.period else at

    def _end(self, client: int, at: float) -> float:
        """Return the end of the client's interval that holds the time `at`; -1 if none does."""
        assert self.traces is not None
        found = bisect_right(self.starts[client], at) - 1
        return self.traces[client][found][1] if found >= 0 and at < self.traces[client][found][1] else -1.0


def merged(rows: Mapping[int, list[tuple[float, float]]], clients: int) -> list[Intervals]:
    """Return the intervals of clients 0 to clients - 1, from rows in any order; intervals that touch or overlap become one."""
    found: list[Intervals] = []
    for client in range(clients):
        own: list[tuple[float, float]] = []
        for start, end in sorted(rows.get(client, ())):
            if own and start <= own[-1][1]:
                own[-1] = (own[-1][0], max(end, own[-1][1]))
            else:
                own.append((start, end))
        found.append(own)
    return found
