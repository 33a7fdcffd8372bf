"""Power cuts and damaged files: looks for promises that are lost and for false data that is loaded.

The one idea: a small run lives on a disk in memory and notes what it promised. The case cuts its power after every single
call in many ways, starts it again from what is left, and compares. It does the same with torn and flipped files.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np

from shoal.coordinator.keeping.disk import DiskTrouble, SyncFailed
from shoal.coordinator.keeping.journal import Journal
from shoal.coordinator.keeping.replay import Replay
from shoal.coordinator.keeping.store import Snapshot, Store
from shoal.faults.ramdisk import File, RamDisk, power_cuts
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle

ROOT = Path("run")
EXTENT = 2048  # bytes of a segment: small, so that segments grow within a few records
CUTS = 12  # states tried at each call
WOUNDS = 60  # damaged disks tried at the end of a life


@dataclass
class Promises:
    """Records written, and how many of them were acknowledged. records[k] is record k + 1. digests: version -> digest of its
    weights.
    """

    records: list[bytes] = field(default_factory=list)
    durable: int = 0
    digests: dict[int, str] = field(default_factory=dict)
    version: int = 0


@dataclass
class Tally:
    """Counts of a case. lost: acknowledged records or versions that are gone. corrupt: records or weights loaded that nobody
    wrote. refused: damaged disks from which a start was refused.
    """

    cases: int = 0
    lost: int = 0
    corrupt: int = 0
    refused: int = 0


@dataclass
class Life:
    """The writes of a coordinator, from one start to the next."""

    disk: RamDisk
    rng: Random
    promises: Promises

    def start(self) -> None:
        """Reads the disk. Raises UserError if the journal begins after the newest whole snapshot."""
        self.store = Store(ROOT, keep=3, disk=self.disk)
        self.snapshot = self.store.newest(_quiet)
        self.after = int(self.snapshot.counters["record"]) if self.snapshot else 0
        self.replay = Replay(ROOT / "journal", "run", self.after, report=_quiet, disk=self.disk)
        self.records = list(self.replay)

    def go_on(self) -> None:
        """Begins to write. Records that were not promised and did not survive are forgotten; their numbers are used again."""
        self.journal = Journal(self.replay, self.replay.epoch + 1, EXTENT)
        self.promises.durable = self.journal.durable
        self.promises.version = self.snapshot.version if self.snapshot else 0
        del self.promises.records[self.journal.durable :]

    def act(self) -> None:
        """Commits records or saves a snapshot. The next call meets disk trouble again; a failed sync ends the life."""
        try:
            if self.rng.random() < 0.75:
                self.commit()
            else:
                self.save()
        except SyncFailed:
            raise
        except DiskTrouble:
            pass

    def commit(self) -> None:
        for _ in range(self.rng.randint(1, 4)):
            record = self.rng.randbytes(self.rng.choice((0, 3, 40, 700, 3000)))
            self.promises.records.append(record)
            cut = self.rng.randint(0, len(record))
            self.journal.append(record[:cut], record[cut:])
        self.promises.durable = self.journal.commit()

    def save(self) -> None:
        version = self.promises.version + 1
        weights = Bundle.pack({"w": np.frombuffer(self.rng.randbytes(400), np.uint8), "b": np.full(3, version, np.float32)})
        self.promises.digests[version] = weights.sha256()
        self.store.save(Snapshot(version, weights, {"m": np.arange(5.0)}, {"record": self.journal.durable}))
        self.promises.version = version
        self.journal.rotate()
        oldest = self.store.oldest()
        if oldest is not None:
            self.journal.forget(int(oldest["record"]))


def run(quick: bool = False, seed: int = 0, cases: int | None = None) -> dict[str, float]:
    """Returns the counts. cases: power cuts and damaged disks tried, 100,000 unless `cases` or `quick` says otherwise.
    acknowledged_lost and corrupt_loads must be 0. refused: damaged disks from which a start was refused with a reason.
    seconds: CPU time of this process.
    """
    rng = Random(seed)
    tally = Tally()
    began = time.process_time()
    goal = cases or (3_000 if quick else 100_000)
    while tally.cases < goal:
        one_run(rng, tally)
    return {
        "cases": tally.cases,
        "acknowledged_lost": tally.lost,
        "corrupt_loads": tally.corrupt,
        "refused": tally.refused,
        "seconds": time.process_time() - began,
    }


class Killed(Exception):  # noqa: N818
    """Ends a life in the middle of a call."""


def one_run(rng: Random, tally: Tally, lives: int = 4, disk: RamDisk | None = None) -> None:
    """Lives `lives` times on a disk that fails now and then, with power cuts tried after every call. Each life ends in the
    middle of a call. Then damages the disk WOUNDS times.
    """
    disk, promises = disk or RamDisk(), Promises()
    for _ in range(lives):
        life = Life(disk, rng, promises)
        disk.watch = _watch(life, rng.randint(1, 120), tally)
        disk.fault = _faults(rng)
        with contextlib.suppress(Killed, DiskTrouble):
            life.start()
            life.go_on()
            while True:
                life.act()
        disk = disk.killed() if rng.random() < 0.5 else rng.choice(list(power_cuts(disk, 4, rng)))
    for _ in range(WOUNDS):
        wound(disk, rng, promises, tally)


def _faults(rng: Random) -> Callable[[str, Path], int]:
    """Returns the faults of a disk that is often full and sometimes broken, except for reads."""

    def fault(call: str, path: Path) -> int:
        if call in ("create", "write", "allocate", "rename", "unlink", "truncate"):
            return rng.choice((errno.ENOSPC, errno.EIO, errno.EROFS)) if rng.random() < 0.02 else 0
        return errno.EIO if call.startswith("sync") and rng.random() < 0.02 else 0

    return fault


def _watch(life: Life, calls: int, tally: Tally) -> Callable[[], None]:
    """Returns a watch that judges power cuts after each of `calls` calls and then ends the life."""
    left = iter(range(calls))

    def watch() -> None:
        for disk in power_cuts(life.disk, CUTS, life.rng):
            tally.cases += 1
            judge(disk, life.promises, tally)
        if next(left, None) is None:
            raise Killed

    return watch


def judge(disk: RamDisk, promises: Promises, tally: Tally, damaged: str = "") -> None:
    """Starts from this disk and compares what is there with what was promised. damaged: suffix of the damaged file. Without
    whole segments less may be there, namely no records; without a whole snapshot, an older version.
    """
    life = Life(disk, Random(0), Promises())
    try:
        life.start()
    except UserError:
        tally.refused += 1
        tally.lost += damaged != ".journal"
        return
    version, weights = (life.snapshot.version, life.snapshot.weights) if life.snapshot else (0, None)
    tally.corrupt += life.records != promises.records[life.after : life.after + len(life.records)]
    tally.corrupt += weights is not None and weights.sha256() != promises.digests.get(version)
    tally.lost += damaged != ".safetensors" and version < promises.version
    tally.lost += damaged != ".journal" and life.after + len(life.records) < promises.durable


def wound(disk: RamDisk, rng: Random, promises: Promises, tally: Tally) -> None:
    """Damages one file (flips bits, cuts it, blanks a part, repeats a part) and judges the disk. A damaged snapshot must lose
    no record, because the snapshots before it are kept, and the journal back to the oldest of them.
    """
    hurt = disk.killed()
    files = [path for path, file in hurt.seen.items() if file.seen]
    if not files:
        return
    tally.cases += 1
    path = rng.choice(files)
    rng.choice(WAYS_TO_WOUND)(hurt.seen[path], rng)
    judge(hurt, promises, tally, damaged=path.suffix)


def flip(file: File, rng: Random) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        file.seen[rng.randrange(len(file.seen))] ^= 1 << rng.randrange(8)
    _settle(file)


def cut(file: File, rng: Random) -> None:
    del file.seen[rng.randrange(len(file.seen)) :]
    _settle(file)


def blank(file: File, rng: Random) -> None:
    at = rng.randrange(len(file.seen))
    length = min(rng.choice((1, 20, 512)), len(file.seen) - at)
    file.seen[at : at + length] = bytes(length)
    _settle(file)


def repeat(file: File, rng: Random) -> None:
    at, to = rng.randrange(len(file.seen)), rng.randrange(len(file.seen))
    piece = file.seen[at : at + rng.choice((20, 512))]
    file.seen[to : to + len(piece)] = piece
    _settle(file)


WAYS_TO_WOUND: tuple[Callable[[File, Random], None], ...] = (flip, cut, blank, repeat)


def _settle(file: File) -> None:
    file.changes.clear()
    file.durable = bytes(file.seen)


def _quiet(line: str) -> None:
    pass
