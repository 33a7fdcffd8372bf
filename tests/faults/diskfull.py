"""A disk that is full, failing or read-only, and a process without free descriptors: contributions acknowledged and not on
the disk, and seconds until the run goes on after relief.

The one idea: the same question is put to the learner over a disk in memory, where any call can fail with any error, and to
whole runs on a small disk of their own, if the system lets us mount one.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from shoal.aggregators import Aggregator
from shoal.benchmarks.case import Finding
from shoal.coordinator.checks import Inspector
from shoal.coordinator.deciding.events import Fold, Folded
from shoal.coordinator.deciding.recovered import Recovered
from shoal.coordinator.keeping.journal import Journal
from shoal.coordinator.keeping.recording import Recording
from shoal.coordinator.keeping.replay import Replay
from shoal.coordinator.keeping.store import Store
from shoal.coordinator.learner import Broke, Intake, LearnerThread
from shoal.faults.booked import read, records
from shoal.faults.family import LOOK, Family
from shoal.faults.ramdisk import RamDisk
from shoal.jobs.catalog import find
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.messages import Contribute
from shoal.protocol.work import Contribution, Moved, Task

SICK = 1.2  # seconds for which a disk is in trouble
MOST = 2.0  # seconds within which the run must go on
ROOT = Path("run")
LAYOUT = Layout.of({"w": ("f4", (64,))})


@dataclass(frozen=True)
class Ill:
    """The result of one trouble. false: contributions acknowledged and not on the disk. resumed: seconds from relief to the
    next acknowledgement; None: there was none.
    """

    false: int
    resumed: float | None

    def plain(self) -> dict[str, Any]:
        return {"false": self.false, "resumed_s": self.resumed}


def diskfull(quick: bool) -> Finding:
    """Measures each trouble in memory; in whole runs, a full disk (also with a killed coordinator) and no free descriptors."""
    found: dict[str, Ill] = {
        f"{errno.errorcode[code]} in memory": in_memory(code) for code in (errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EROFS)
    }
    found["failed sync in memory"] = in_memory(errno.EIO, sync=True)
    with small_disk() as (disk, relief):
        if disk is not None:
            found["ENOSPC, a whole run"] = whole_run(disk / "a", relief, killed=False)
    with small_disk() as (disk, relief):
        if disk is not None:
            found["ENOSPC and a killed coordinator, a whole run"] = whole_run(disk / "a", relief, killed=True)
    found["EMFILE, a whole run"] = no_descriptors()
    worst = max((one.resumed if one.resumed is not None else float("inf") for one in found.values()), default=float("inf"))
    false = sum(one.false for one in found.values())
    return Finding(
        figure=float(false),
        unit="acknowledged and not on the disk",
        goal=0.0,
        holds=false == 0 and worst <= MOST,
        asked="0 false acknowledgements, and the run goes on at most 2 s after relief",
        details={"worst_resumed_s": None if worst == float("inf") else worst, **{k: one.plain() for k, one in found.items()}},
    )


# Over a disk in memory


class Sum:
    """The smallest aggregator."""

    linear: ClassVar[bool] = True

    def __init__(self) -> None:
        self.total = Bundle.zeros(LAYOUT)

    def weights(self) -> Bundle:
        return self.total

    def fold(self, contribution: Contribution) -> None:
        assert contribution.work.bundle is not None
        self.total.vector()[:] += contribution.work.bundle.vector()

    def step(self) -> Moved:
        return Moved()

    def state(self) -> Mapping[str, Any]:
        return {}

    def load(self, weights: Bundle, state: Mapping[str, Any]) -> None:
        self.total = weights


def in_memory(code: int, sync: bool = False) -> Ill:
    """Gives contributions to a learner while the disk answers `code` to every write, or to every sync. After a failed sync only
    a new life may trust the disk.
    """
    disk = RamDisk()
    life = Lived(disk, 1)
    life.give(20)
    life.until(lambda: life.told() == 20)
    before = life.told()
    wrong = ("sync", "sync_folder") if sync else ("write", "allocate", "create", "rename", "truncate")
    disk.fault = lambda call, path: code if call in wrong else 0
    ends_at = time.monotonic() + SICK
    while time.monotonic() < ends_at:
        life.give(10)
        life.pause(0.1)
    false = life.told() - min(life.told(), durable(disk))
    disk.fault = lambda call, path: 0
    relief = time.monotonic()
    if life.broke():
        life = Lived(disk, 2)
        before = life.told()
        life.give(1)
    life.until(lambda: life.told() > before)
    return Ill(false, time.monotonic() - relief if life.told() > before else None)


class Lived:
    """A learner with its recording, on a disk in memory."""

    def __init__(self, disk: RamDisk, epoch: int) -> None:
        disk.make_folder(ROOT)
        replay = Replay(ROOT / "journal", "run", report=_quiet, disk=disk)
        self.recording = Recording(
            Store(ROOT, disk=disk),
            Journal(replay, epoch, extent=2_048),
            Recovered(epoch=epoch - 1),
            payload=True,
            every=1e12,
            clock=time.monotonic,
            report=_quiet,
        )
        summed: Aggregator = Sum()
        self.learner = LearnerThread(summed, Inspector(), time.monotonic, wake=lambda: None, recording=self.recording)
        self.given = 0
        self.bundle = Bundle.pack({"w": np.ones(64, np.float32)})
        self.pause = threading.Event().wait

    def give(self, many: int) -> None:
        for _ in range(many):
            task = Task(0, self.given, (self.given,))
            said = Contribute((0, self.given), 1, 0, 1.0, LAYOUT.digest, False, {}, {}, 0.0, 0.0)
            self.learner.put([Intake(Fold(task, task.clients, said, 0), self.bundle)])
            self.given += 1

    def told(self) -> int:
        return sum(isinstance(one, Folded) for one in list(self.learner.outcomes))

    def broke(self) -> bool:
        return any(isinstance(one, Broke) for one in list(self.learner.outcomes))

    def until(self, holds: Callable[[], bool], limit: float = 10.0) -> None:
        ends_at = time.monotonic() + limit
        while not holds() and time.monotonic() < ends_at:
            self.pause(0.005)


def durable(disk: RamDisk) -> int:
    """Returns the number of records that the next life would find."""
    twin = disk.killed()
    twin.fault = lambda call, path: 0
    return sum(1 for _ in Replay(ROOT / "journal", "run", report=_quiet, disk=twin))


# Whole runs


@contextmanager
def small_disk() -> Iterator[tuple[Path | None, Callable[[], None]]]:
    """Yields a disk of 6 MB and a function that enlarges it to 512 MB; yields None for the disk if nothing can be mounted."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder, ExitStack() as stack:
        mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "shoal", folder]
        with suppress(OSError):
            if os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
                stack.callback(subprocess.run, ["umount", "-l", folder], check=False)
                yield Path(folder), lambda: _enlarge(folder)
                return
        yield None, lambda: None


def _enlarge(folder: str) -> None:
    subprocess.run(["mount", "-o", "remount,size=512m", folder], check=True)


def whole_run(run: Path, relief: Callable[[], None], *, killed: bool) -> Ill:
    """Fills the disk with a journal of payloads, then enlarges the disk."""
    words = ["rounds=1000000", "local_epochs=1", "eval_every=0", "journal=payload", "snapshot_every=1e12"]
    with family_of(words, run) as family:
        _still(family)
        if killed and (coordinator := family.coordinator()) is not None:
            coordinator.kill()
        family.running(SICK)
        relief()
        resumed = _next(family, time.monotonic())
        return Ill(_false(family, run / "journal"), resumed)


def no_descriptors() -> Ill:
    """Leaves the coordinator no free descriptor for SICK seconds: no snapshot, no segment, no new connection."""
    words = ["rounds=1000000", "local_epochs=1", "eval_every=0", "snapshot_every=0.2"]
    with family_of(words) as family:
        _next(family, time.monotonic())
        coordinator = family.coordinator()
        assert coordinator is not None
        limits = resource.prlimit(coordinator.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(coordinator.pid, resource.RLIMIT_NOFILE, (max(3, coordinator.num_fds() - 2), limits[1]))
        family.running(SICK)
        with suppress(ProcessLookupError):  # another life of the coordinator has taken its place
            resource.prlimit(coordinator.pid, resource.RLIMIT_NOFILE, limits)
        resumed = _next(family, time.monotonic())
        return Ill(_false(family, family.kept), resumed)


@contextmanager
def family_of(words: list[str], run: Path | None = None) -> Iterator[Family]:
    job = find("digits").configured(dict(word.split("=") for word in words))
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder, Family(job, words, Path(folder) / "f", 2, run) as family:
        yield family


def _false(family: Family, journal: Path) -> int:
    """Ends the run and returns the number of contributions that actors heard accepted and that the journal lacks."""
    family.child.send_signal(signal.SIGTERM)
    family.child.wait(60)
    family.running(0)
    said = {(one.task, one.attempt) for one in family.heard() if one.verdict == "accepted"}
    return len(said - read(records(journal), payload=True).answered)


def _still(family: Family, limit: float = 90.0) -> None:
    """Waits until something was accepted and then nothing for 1 s. Raises RuntimeError after `limit` seconds."""
    ends_at = time.monotonic() + limit
    while family.running(LOOK) and time.monotonic() < ends_at:
        if 0 < _last(family) < time.monotonic() - 1.0:
            return
    raise RuntimeError(f"the disk does not fill up:\n{family.said()[-2_000:]}")


def _next(family: Family, after: float, limit: float = 30.0) -> float | None:
    """Returns seconds from `after` to the first contribution accepted later; None if none is within `limit` seconds."""
    while time.monotonic() < after + limit and family.running(0.01):
        times = [one.at for one in family.newest() if one.verdict == "accepted" and one.at > after]
        if times:
            return min(times) - after
    return None


def _last(family: Family) -> float:
    return max((one.at for one in family.newest() if one.verdict == "accepted"), default=0.0)


def _quiet(text: str) -> None:
    pass
