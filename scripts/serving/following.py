"""Sources of the versions of a model: the snapshots of a run's folder, or a coordinator while it trains.

The one idea: a source hands each version on and has no opinion of it. What came is copied, so that nothing that the trainer
does afterwards reaches a version that answers.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal.actors import Worker
from shoal.actors.loop import Actor
from shoal.coordinator.keeping.store import FOLDER, newest, snapshots
from shoal.jobs.job import Job
from shoal.protocol.door import ClientKeys
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Work
from shoal.runs.living import job_asked

Take = Callable[[int, Bundle], None]
Say = Callable[[str], None]

LOOK = 0.5  # seconds between two looks for a new snapshot


class RunFolder:
    """The snapshots of a run's folder: the newest at once, and each newer one when it is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._seen = -1

    def start(self, take: Take, say: Say) -> bool:
        there = bool(snapshots(self.folder / FOLDER))
        self._thread = threading.Thread(target=self._follow, args=(take, say), name="snapshots", daemon=True)
        self._thread.start()
        return there

    def look(self, take: Take, say: Say) -> None:
        """Hand on the newest whole snapshot, if it is newer than the last one."""
        named = snapshots(self.folder / FOLDER)
        if not named or named[-1][0] <= self._seen:
            return
        found = newest(self.folder, say)
        if found is not None and found.version > self._seen:
            take(found.version, found.weights)
        self._seen = max(self._seen, named[-1][0])

    def _follow(self, take: Take, say: Say) -> None:
        while True:
            try:
                self.look(take, say)
            except OSError as gone:
                say(f"{self.folder} cannot be read ({gone.strerror}): the version that answers goes on")
            if self._over.wait(LOOK):
                return

    def end(self) -> None:
        self._over.set()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(5.0)


@dataclass
class Known:
    """The job of a coordinator's run, as its Welcome tells it. name: of the run."""

    job: Job | None = None
    wrong: str = ""
    told: threading.Event = field(default_factory=threading.Event)


class Coordinator:
    """A coordinator whose weights are followed. own: the job that this machine's user named with --job; None: a built-in job
    is expected. Wait for `known.told` before the job is used."""

    def __init__(self, address: str, keys: ClientKeys | None, own: Job | None, name: str) -> None:
        self.address, self.keys, self.own, self.name = address, keys, own, name
        self.known = Known()
        self.over = ""
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._take: Take | None = None
        self._last: tuple[int, Bundle] | None = None
        self._lock = threading.Lock()

    def join(self, say: Say) -> Job:
        """Say Hello, and wait until the coordinator has told its job. Raises UserError if it refuses, or its job is unknown."""
        self._thread = threading.Thread(target=self._live, args=(say,), name="follower", daemon=True)
        try:
            self._thread.start()
            while not self.known.told.wait(LOOK):
                pass  # a signal that comes just before a wait is heard after it
        except BaseException:  # a signal's
            self.end()
            raise
        if self.known.job is None:
            raise UserError(self.known.wrong)
        return self.known.job

    def start(self, take: Take, say: Say) -> bool:
        with self._lock:
            self._take = take
            if self._last is not None:
                take(*self._last)
        return True

    def _came(self, version: int, weights: Bundle) -> None:
        own = Bundle(weights.layout, weights.data.copy())  # the coordinator's memory is written again
        with self._lock:
            self._last = (version, own)
            if self._take is not None:
                self._take(version, own)

    def _workshop(self, workload: Mapping[str, Any]) -> Worker:
        job = job_asked(workload, self.own)
        if self.known.job is None:
            self.known.job = job
            self.known.told.set()
        return Idle()

    def _live(self, say: Say) -> None:
        """Follow until the run is over. Then the last version goes on."""
        try:
            actor = Actor(
                self.address,
                self._workshop,
                name=self.name,
                session=os.urandom(8),
                clock=time.monotonic,
                say=say,
                interrupted=lambda: "the server ends" if self._end.is_set() else "",
                keys=self.keys,
                adopted=self._came,
            )
            left = actor.live()
            reason = left.reason
            self.known.wrong = f"{self.address}: {reason}"
        except (UserError, ProtocolError) as wrong:
            reason = self.known.wrong = str(wrong)
        self.known.told.set()
        if not self._end.is_set():
            say(f"{self.address} is followed no more ({reason}): the last version goes on")

    def end(self) -> None:
        self._end.set()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(5.0)


class Idle:
    """The worker of an actor that follows: it is never given a task."""

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        raise UserError("a server of predictions does no task: the coordinator is older than protocol 2.4")
