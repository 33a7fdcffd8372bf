"""The actors of this machine: an actor that dies is replaced.

The one idea: a death is an event like any other. The core limits the deaths of one task; the crew limits those that no task
explains, because no replacement mends what ends actors before they work.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from typing import Any

from shoal.actors.pool import LEFT, UNFIT, Pool
from shoal.coordinator.reports import Report

INFERRING = 3  # deaths of the inference process within WITHIN seconds after which there is none any more
WITHIN = 60.0  # seconds in which the crew replaces at most three actors for each place in it whose death no task explains


class Crew:
    """A pool whose number of actors stays the same. The server calls `gone`, and gives the tasks of dead actors to others.
    Evaluators are actors with the argument "evaluates". A crew that hires them besides its actors does not end when none of
    them is left; in a crew of evaluators alone they count as any actors do.

    blamed: number of deaths so far that the core blamed on tasks. final: exit codes after which an actor is not replaced.
    codes: exit statuses of the actors that were not replaced.
    """

    def __init__(
        self,
        pool: Pool,
        many: int,
        report: Callable[[Report], None],
        clock: Callable[[], float],
        blamed: Callable[[], int] = int,
        final: Container[int] = (LEFT, UNFIT),
    ) -> None:
        self.final, self.codes = final, list[int]()
        self.pool, self.many, self.report, self.clock, self.blamed = pool, many, report, clock, blamed
        self.deaths: deque[float] = deque()  # of the last WITHIN seconds, without those that were explained since
        self.explained = self.evicted = 0
        self.left = many
        self.leaving = set[int]()
        self.last = ""
        self.arguments: Mapping[str, Any] = {}
        self.inferring: Mapping[str, Any] = {}
        self.evaluators = 0
        self._lost: deque[float] = deque(maxlen=INFERRING)  # times at which the inference process ended

    def hire(self, arguments: Mapping[str, Any], inferring: Mapping[str, Any] | None = None, evaluators: int = 0) -> None:
        """Start all actors; each lives with `arguments` (actors/pool.py). inferring: the arguments of the inference process,
        which is started first; None: there is none. evaluators: evaluators that are started besides."""
        self.arguments, self.inferring, self.evaluators = arguments, inferring or {}, evaluators
        if inferring:
            self.pool.grow(1, inferring, aside=True)
        self.pool.grow(self.many, arguments)
        if evaluators:
            self.pool.grow(evaluators, {**arguments, "evaluates": True})

    def gone(self) -> list[int]:
        """Process ids of the actors that have ended since the last call. An actor that neither left in good order nor was unfit
        for the job is replaced."""
        ended = self.pool.ended()
        while self.pool.lost:
            self._bereft(self.pool.lost.pop())
        for pid, status in ended.items():
            its = self.pool.lives.pop(pid, self.arguments)
            self.last = (
                "left" if status == LEFT else f"ended by signal {-status}" if status < 0 else f"ended with code {status}"
            )
            if status == UNFIT:
                self.last = "could not set up its work"
            if pid in self.leaving:
                self.leaving.discard(pid)
                continue
            if status in self.final or not self._replaced(pid, its):
                self.left -= its.get("evaluates", False) == self.arguments.get("evaluates", False)
                self.codes.append(status)
        return list(ended)

    def _replaced(self, pid: int, arguments: Mapping[str, Any]) -> bool:
        now, explained = self.clock(), self.blamed() + self.evicted
        self.deaths.append(now)
        while self.deaths and (self.deaths[0] < now - WITHIN or self.explained < explained):
            self.explained += self.deaths.popleft() >= now - WITHIN
        if many := len(self.deaths) > 3 * (self.many + self.evaluators):
            why = f"{len(self.deaths)} deaths within {WITHIN:.0f} s that no task explains"
            self.report(Report("crew", f"process {pid} {self.last} and is not replaced: {why}", "error"))
        else:
            self.report(Report("crew", f"process {pid} {self.last}; another takes its place", "warning"))
            self.pool.grow(1, arguments)
        return not many

    def _bereft(self, status: int) -> None:
        """The inference process has ended: start another one, unless it ends again and again. Actors do without meanwhile."""
        now = self.clock()
        self._lost.append(now)
        how = f"the inference process was ended by signal {-status}" if status < 0 else f"the inference process ended, {status}"
        if len(self._lost) == INFERRING and self._lost[0] > now - WITHIN:
            why = (
                f"it did so {INFERRING} times within {WITHIN:.0f} s, and the actors compute the network themselves from now on"
            )
            self.report(Report("crew", f"{how}: {why}", "error"))
        else:
            self.report(Report("crew", f"{how}; another takes its place", "warning"))
            self.pool.grow(1, self.inferring, aside=True)

    def resize(self, many: int) -> int:
        """Have so many actors from now on. Returns the number of actors that are too many, which `let_go` takes off."""
        self.many = many
        if (more := many - self.left) > 0:
            self.left = many
            self.pool.grow(more, self.arguments)
        return self.left - many

    def let_go(self, pid: int) -> None:
        """Take an actor off, which was told to leave, and whose end is no death."""
        self.leaving.add(pid)
        self.left -= 1

    def evict(self, pids: Sequence[int]) -> None:
        """Kill those processes of `pids` that belong to this crew: their workers hang, and read no message."""
        for pid in self.pool.alive.intersection(pids):
            with suppress(ProcessLookupError):  # it has ended, and the pool has not heard of it
                os.kill(pid, signal.SIGKILL)
                self.evicted += 1

    def spent(self) -> str:
        """Return why the run cannot go on, if no actor of this machine is left; "" as long as there are actors."""
        ended = f"all {self.many} actors of this machine have ended, the last one {self.last}"
        return self.pool.fault or ("" if self.left > 0 else ended)
