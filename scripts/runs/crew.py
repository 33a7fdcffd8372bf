"""This machine's own actors: an actor that dies is replaced.

The one idea: a death is an event like any other. But more than three deaths for each actor within 60 s are a fault that no
replacement mends.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shoal.actors.pool import Pool
from shoal.coordinator.reports import Report

WITHIN = 60.0  # seconds in which the crew replaces at most three dead actors for each place in it


class Crew:
    """A pool whose number of actors stays the same. The server calls `gone`, and gives the tasks of dead actors to others."""

    def __init__(self, pool: Pool, many: int, report: Callable[[Report], None], clock: Callable[[], float]) -> None:
        self.pool, self.many, self.report, self.clock = pool, many, report, clock
        self.deaths: deque[float] = deque()
        self.left = many
        self.arguments: Mapping[str, Any] = {}

    def hire(self, arguments: Mapping[str, Any]) -> None:
        """Start all actors; each lives with `arguments` (actors/pool.py)."""
        self.arguments = arguments
        self.pool.grow(self.many, arguments)

    def gone(self) -> list[int]:
        """Process ids of the actors that have ended since the last call. An actor that did not end with code 0 is replaced."""
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
        """Kill those processes of `pids` that belong to this crew: their workers hang, and read no message."""
        for pid in self.pool.alive.intersection(pids):
            os.kill(pid, signal.SIGKILL)

    def spent(self) -> str:
        """Why the run cannot go on, if no actor of this machine is left; "" as long as there are actors."""
        return self.pool.fault or ("" if self.left > 0 else f"all {self.many} actors of this machine have ended")
