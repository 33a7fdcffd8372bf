"""A run of real processes that can be hurt: a coordinator under its supervisor, actors forked here, and the actors' notes.

The one idea: each actor's process writes down every verdict as it arrives. These notes, and not the coordinator's own words,
say which contributions were acknowledged, to whom and when.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import psutil

from shoal.actors.loop import Actor, on_signals
from shoal.actors.pool import Life, Pool, die_with_parent
from shoal.jobs.job import Job
from shoal.protocol.link import Arrival
from shoal.protocol.messages import TaskName, Verdict

LOOK = 0.05  # seconds between two looks at the run
LONGEST = 256  # bytes, more than a note has
LIMIT = 120.0  # seconds after which a run that does not move is given up
TRIES = 1 << 16  # an attempt is epoch * TRIES + tries (coordinator/deciding/ledger.py)


def lives(process: psutil.Process) -> bool:
    """Returns whether a process has not ended; it may end between two questions."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass(frozen=True, slots=True)
class Heard:
    """A verdict as it reached an actor. at: seconds of this machine's monotonic clock."""

    at: float
    task: TaskName
    attempt: int
    verdict: str

    @property
    def epoch(self) -> int:
        return self.attempt // TRIES


class Family:
    """Starts `shoal coordinator JOB words ... --restart` in `folder`, and actors that play `job`, which is the same job.

    This process is the parent of all of them, and none outlives it. Call it from the main thread. run: folder of the run, if it
    is not folder/run. name: the job's name on the command line, if it is not a built-in one. share: actors use shared memory.
    """

    def __init__(
        self,
        job: Job,
        words: Sequence[str],
        folder: Path,
        actors: int,
        run: Path | None = None,
        *,
        name: str = "",
        share: bool = True,
    ) -> None:
        self.run, self.notes, self.log = run or folder / "run", folder / "heard", folder / "log"
        self.kept = folder / "kept"
        self.notes.mkdir(parents=True)
        self.kept.mkdir()
        self.seen: set[psutil.Process] = set()
        job.prepare()
        self.pool = Pool.forked(noting(job, self.notes, share))
        shoal = [sys.executable, "-m", "shoal", "coordinator", name or job.name, *words]
        more = ["--bind", "tcp://127.0.0.1:*", "--restart", "--json", "--run-dir", str(self.run), "--seed", str(job.seed)]
        parent = os.getpid()
        self.told = (folder / "told").open("w+b")
        with self.log.open("wb") as log:
            self.child = subprocess.Popen(
                [*shoal, *more],
                stdout=self.told,
                stderr=log,
                preexec_fn=lambda: die_with_parent(parent),  # noqa: PLW1509  this process has no threads
            )
        self.supervisor = psutil.Process(self.child.pid)
        self.seen.update((self.supervisor, psutil.Process(self.pool.pid)))
        self.address = self._listening()
        self.grow(actors)

    def _listening(self) -> str:
        ends_at = time.monotonic() + LIMIT
        while time.monotonic() < ends_at and self.running(LOOK):
            if found := re.search(r"listening on (\S+);", self.said()):
                return found[1]
        raise RuntimeError(f"the coordinator did not start:\n{self.said()}")

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def grow(self, many: int) -> None:
        self.pool.grow(many, {"address": self.address})

    def actors(self) -> list[psutil.Process]:
        """Replaces actors that have ended, and returns the living ones."""
        if missing := len(self.pool.ended()):
            self.grow(missing)
        return self._known(self.pool.alive)

    def coordinator(self) -> psutil.Process | None:
        """Returns the coordinator's process; None between two lives."""
        with suppress(psutil.NoSuchProcess):
            return next(iter(self._known(child.pid for child in self.supervisor.children())), None)
        return None

    def _known(self, pids: Any) -> list[psutil.Process]:
        found = []
        for pid in pids:
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        self.seen.update(found)
        return found

    def running(self, seconds: float) -> bool:
        """Waits at most `seconds` and returns True if the run goes on."""
        with suppress(subprocess.TimeoutExpired):
            self.child.wait(seconds)
        self._keep()
        return self.child.returncode is None

    def _keep(self) -> None:
        """Gives the journal's segments a second name here, so that the audit has them when the run forgets them."""
        for path in (self.run / "journal").glob("*.journal"):
            with suppress(OSError):  # the name is there already, the segment is gone, or the run is on another disk
                os.link(path, self.kept / path.name)

    def finish(self, limit: float = LIMIT) -> dict[str, Any]:
        """Returns the run's result. Raises RuntimeError if the run fails, or makes no version for `limit` seconds."""
        moved_at, before = time.monotonic(), -1
        while self.running(LOOK) and time.monotonic() - moved_at < limit:
            self.actors()
            if (now := self._written()) != before:
                moved_at, before = time.monotonic(), now
        if self.child.returncode != 0:
            raise RuntimeError(f"no good end (exit status {self.child.returncode}):\n{self.said()[-4_000:]}")
        self.told.seek(0)
        found: dict[str, Any] = json.loads(self.told.read().splitlines()[-1])
        return found

    def _written(self) -> int:
        """Returns the bytes of metrics.jsonl, which grows with each version; 0 if it is not there."""
        with suppress(OSError):
            return (self.run / "metrics.jsonl").stat().st_size
        return 0

    def heard(self, but: Collection[int] = ()) -> Iterator[Heard]:
        """Yields every verdict that actors heard so far, actor by actor. but: process ids of actors to leave out."""
        for path in sorted(path for path in self.notes.iterdir() if int(path.name) not in but):
            yield from map(_heard, path.read_bytes().splitlines())

    def newest(self) -> Iterator[Heard]:
        """Yields the last verdict that each actor heard."""
        for path in self.notes.iterdir():
            with path.open("rb") as notes:
                notes.seek(max(0, notes.seek(0, os.SEEK_END) - LONGEST))
                *_, last = b"", *notes.read().splitlines()
            if last:
                yield _heard(last)

    def left(self) -> list[psutil.Process]:
        """Returns the processes of this family that still live."""
        return list(filter(lives, self.seen))

    def close(self) -> None:
        with suppress(ProcessLookupError):
            if self.child.poll() is None:
                self.child.kill()
                self.child.wait()
        self.pool.close()
        self.told.close()

    def __enter__(self) -> Family:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _heard(line: bytes) -> Heard:
    at, version, index, attempt, verdict = line.decode().split()
    return Heard(float(at), (int(version), int(index)), int(attempt), verdict)


def noting(job: Job, notes: Path, share: bool = True) -> Life:
    """Returns the life of an actor (scripts/runs/living.py) that writes each verdict down as it arrives."""

    def live(arguments: Mapping[str, Any]) -> int:
        flag = threading.Event()
        on_signals(flag)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        actor = Actor(
            str(arguments["address"]),
            lambda workload: job.worker(),
            name=f"actor-{os.getpid()}",
            session=os.urandom(8),
            clock=time.monotonic,
            say=lambda text: None,
            interrupted=lambda: "told to stop" if flag.is_set() else "",
        )
        if not share:
            actor.session.hello = replace(actor.session.hello, offers=())
        note = os.open(notes / str(os.getpid()), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        drain = actor.line.drain

        def heard() -> Iterator[Arrival]:
            for arrival in drain():
                if arrival.envelope and isinstance(said := arrival.envelope.message, Verdict):
                    line = f"{time.monotonic()} {said.task[0]} {said.task[1]} {said.attempt} {said.verdict}\n"
                    os.write(note, line.encode())
                yield arrival

        actor.line.drain = heard  # type: ignore[method-assign]
        return 1 if actor.live().failed else 0

    return live


class Trouble:
    """Kills or stops one process of a family at a time, never the supervisor or the pool. share: share of blows that hit the
    coordinator. stops: share of blows that stop (SIGSTOP) and do not kill.
    """

    def __init__(self, family: Family, rng: Random, *, share: float = 0.35, stops: float = 0.2) -> None:
        self.family, self.rng, self.share, self.stops = family, rng, share, stops
        self.kills = {"coordinator": 0, "actor": 0}
        self.halts = 0
        self.killed_at: list[tuple[float, str]] = []
        self._stopped: list[tuple[float, psutil.Process]] = []

    def strike(self) -> None:
        """Strikes one process, chosen by the seed."""
        actors, coordinator = self.family.actors(), self.family.coordinator()
        whom = "coordinator" if self.rng.random() < self.share else "actor"
        stop, seconds, at = self.rng.random() < self.stops, self.rng.uniform(0.3, 2.5), self.rng.random()
        victim = coordinator if whom == "coordinator" else actors[int(at * len(actors))] if actors else None
        if victim is None:
            return
        with suppress(psutil.NoSuchProcess):
            if stop:
                victim.suspend()
                self._stopped.append((time.monotonic() + seconds, victim))
                self.halts += 1
            else:
                self.killed_at.append((time.monotonic(), whom))
                victim.kill()
                self.kills[whom] += 1

    def relent(self, all_of_them: bool = False) -> None:
        """Lets processes go on whose stop is over, or all."""
        now = time.monotonic()
        for until, victim in list(self._stopped):
            if all_of_them or now >= until:
                with suppress(psutil.NoSuchProcess):
                    victim.resume()
                self._stopped.remove((until, victim))

    def rage(self, every: float, most: float) -> float:
        """Strikes once every `every` seconds, from the first accepted contribution until the run ends or `most` seconds have
        passed. Returns the seconds of blows.
        """
        while self.family.running(LOOK) and not any(one.verdict == "accepted" for one in self.family.newest()):
            pass
        began = time.monotonic()
        next_at = began + every
        while (now := time.monotonic()) < began + most and self.family.running(min(LOOK, max(0.0, next_at - now))):
            self.relent()
            if time.monotonic() >= next_at:
                next_at += every
                self.strike()
        self.relent(all_of_them=True)
        return time.monotonic() - began


def shared_names() -> set[str]:
    """Returns the names of shared memory on this machine."""
    with suppress(FileNotFoundError):
        return set(os.listdir("/dev/shm"))
    return set()
