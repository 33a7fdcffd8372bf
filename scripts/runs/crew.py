"""This machine's own actors: one that dies is replaced.

The one idea: a death is an event like any other, but many deaths in a short time are a fault that no replacement mends.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shoal.actors.pool import Pool
from shoal.coordinator.reports import Report

WITHIN = 60.0  # seconds in which an actor's place may be filled anew three times


class Crew:
    """A pool that keeps its number. `gone` is for the server, which hands on what the dead ones held."""

    def __init__(self, pool: Pool, many: int, report: Callable[[Report], None], clock: Callable[[], float]) -> None:
        self.pool, self.many, self.report, self.clock = pool, many, report, clock
        self.deaths: deque[float] = deque()
        self.left = many
        self.arguments: Mapping[str, Any] = {}

    def hire(self, arguments: Mapping[str, Any]) -> None:
        """All of them; each lives with `arguments` (actors/pool.py)."""
        self.arguments = arguments
        self.pool.grow(self.many, arguments)

    def gone(self) -> list[int]:
        """Process ids of those that have ended since the last call; a place whose actor was killed is filled again."""
        ended = self.pool.ended()
        for pid, status in ended.items():
            if status != 0:
                self._replace(pid, status)
            else:
                self.left -= 1
        return list(ended)

    def _replace(self, pid: int, status: int) -> None:
        now = self.clock()
        self.deaths.append(now)
        while self.deaths[0] < now - WITHIN:
            self.deaths.popleft()
        how = f"by signal {-status}" if status < 0 else f"with code {status}"
        if len(self.deaths) > 3 * self.many:
            self.left -= 1
            why = f"{len(self.deaths)} deaths within {WITHIN:.0f} s"
            self.report(Report("crew", f"process {pid} ended {how} and is not replaced: {why}", "error"))
            return
        self.report(Report("crew", f"process {pid} ended {how}; another takes its place", "warning"))
        self.pool.grow(1, self.arguments)

    def evict(self, pids: Sequence[int]) -> None:
        """End those of ours that are named: their workers hang, and no word reaches them."""
        for pid in self.pool.alive.intersection(pids):
            os.kill(pid, signal.SIGKILL)

    def spent(self) -> str:
        """Why the run cannot go on without them; "" as long as there are some."""
        return self.pool.fault or ("" if self.left > 0 else f"all {self.many} actors of this machine have ended")
