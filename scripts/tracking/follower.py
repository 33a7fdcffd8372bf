"""A follower: a process that tells the rows of one run's metrics.jsonl to one tracker.

The one idea: the run knows nothing of the tracker. The follower reads the file, tells what is new, and then notes how far it
has told, so a follower that is killed, slow or started later loses nothing, and the run waits for none of it.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import select
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal.protocol.errors import UserError
from shoal.runs.rundir import RunDir
from shoal.runs.status import status
from shoal.tracking.position import Line, Position, news
from shoal.tracking.trackers import TRACKERS, About, Down, Point, Tracker, Wanted

LOOK = 0.5  # seconds between two looks at the file
BATCH = 200  # rows told at once
FIRST, LONGEST = 1.0, 30.0  # seconds until a tracker that is down is asked again: at first, at most
PATIENCE = 60.0  # seconds after the end of a run in which a tracker that is down is asked again
ALIVE = math.inf  # `within` of the status: a run that stands still goes on

Say = Callable[[str], object]


class Note:
    """The notes of a follower across its lives: a file in the run's folder, replaced after each batch.

    token: names the run to the tracker. started: Unix time in seconds when the run's `seconds` were 0, as far as known.
    """

    def __init__(self, path: Path, started: float, token: str) -> None:
        """Raises UserError if the file was not written by a follower."""
        self.path, self.started, self.token = path, started, token
        self.position, self.memory = Position(), dict[str, Any]()
        if path.is_file():
            try:
                told = json.loads(path.read_text(encoding="utf-8"))
                self.started, self.token = float(told["started"]), str(told["token"])
                self.position, self.memory = Position.of(told["position"]), dict(told["memory"])
            except (ValueError, KeyError, TypeError, OverflowError) as broken:
                raise UserError(
                    f"{path} is not as a follower wrote it ({broken!r}): remove it to tell all rows again"
                ) from None

    def save(self, position: Position) -> None:
        """Write the note, whole and durable, with this position. Raises OSError."""
        told = {"token": self.token, "started": self.started, "position": position.plain(), "memory": self.memory}
        part = self.path.with_suffix(".part")
        with part.open("w", encoding="utf-8") as file:
            json.dump(told, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path)


@dataclass
class Follower:
    """Tells a run to a tracker. say: takes a line for the user. over: True if the run has ended. wait: waits so many seconds,
    or until the run has ended."""

    run: RunDir
    wanted: Wanted
    tracker: Tracker
    note: Note
    say: Say
    over: Callable[[], bool]
    wait: Callable[[float], object]
    clock: Callable[[], float] = time.monotonic
    told: int = 0  # rows
    _sure: list[Position] = field(default_factory=list)  # positions of the newest rows told
    _begun: bool = False
    _missing: bool = False

    def live(self) -> bool:
        """Tell all rows, those to come too, until the run has ended. Returns True if the tracker knows all rows. Raises
        UserError if the tracker cannot be told."""
        delay, down, patient = FIRST, False, math.inf
        while True:
            over = self.over()  # before the look: so that rows written before the end are seen
            patient = min(patient, self.clock() + PATIENCE) if over else math.inf
            try:
                more = self._turn(over)
            except Down as why:
                if self.clock() >= patient:
                    self.say(f"given up: {why}; go on later with: {self.again}")
                    return False
                if not down:
                    self.say(f"{why}: trying again until it answers")
                down = True
                self.wait(min(delay, max(0.0, patient - self.clock())))
                delay = min(2 * delay, LONGEST)
                continue
            if down:
                self.say("answers again")
            delay, down, patient = FIRST, False, math.inf
            if over and not more:
                return True
            if not more:
                self.wait(LOOK)

    @property
    def again(self) -> str:
        """The command that goes on with this."""
        to = " --to ..." if TRACKERS[self.wanted.name].default != (self.wanted.to,) and self.wanted.to else ""
        return f"shoal track {self.run.path} {self.wanted}{to}"

    def _turn(self, over: bool) -> bool:
        """Tell what is new. Returns True if there may be more at once."""
        if not self._begun:
            self.note.save(self.note.position)  # the token first: a follower that is killed in `begin` is known by it
            self.tracker.begin(self._about(), self.note.memory)
            self._begun = True
            self.note.save(self.note.position)
        more = self._there() and self._told()
        if over and not more:
            self.tracker.end(_state(self.run))
            self.note.save(self.note.position)
        return more

    def _told(self) -> bool:
        found = news(self._read, self.note.position)
        if found.note:
            self.say(found.note)
            self._sure = []
        self.note.position = found.position
        for at in range(0, len(found.lines), BATCH):
            self._tell(found.lines[at : at + BATCH])
        return found.more

    def _tell(self, lines: Sequence[Line]) -> None:
        self.tracker.tell([self._point(line.row) for line in lines])
        self.told += len(lines)
        unsure = self.tracker.unsure
        before = [self.note.position.after(lines[: at + 1]) for at in range(max(0, len(lines) - unsure - 1), len(lines))]
        self._sure = [*self._sure, *before][-unsure - 1 :]
        self.note.position = before[-1]
        if len(self._sure) > unsure:
            self.note.save(self._sure[0])

    def _there(self) -> bool:
        """True if the history is there. A history that is gone is told of once."""
        if self.run.metrics_file.is_file():
            self._missing = False
            return True
        if not self.run.config_file.is_file():
            raise UserError(f"{self.run.path} is gone, and with it the rows that were not told yet")
        if self.note.position.told and not self._missing:
            self.say("metrics.jsonl is gone from the run's folder: waiting for another")
        self._missing = True
        return False

    def _read(self, at: int, most: int) -> bytes:
        try:
            with self.run.metrics_file.open("rb") as file:
                return os.pread(file.fileno(), most, at)
        except FileNotFoundError:
            raise Down("metrics.jsonl is gone from the run's folder") from None

    def _about(self) -> About:
        config = self.run.config()
        own = {name: getattr(config, name) for name in ("job", "seed", "actors", "transport", "device", "threads")}
        return About(self.run.name, self.note.token, self.note.started, {**own, **config.settings})

    def _point(self, row: Mapping[str, Any]) -> Point:
        seconds = float(row.get("seconds") or 0.0)
        lag = row.get("lag") or [None, None, None]
        counts = {name: row.get(name) for name in ("version", "seconds", "contributions", "actors")}
        counts |= {"lag/mean": lag[1], **({"steps": row["steps"]} if row.get("steps") else {})}
        every = {**row["metrics"], **counts}
        values = {
            name: float(value) for name, value in every.items() if isinstance(value, int | float) and math.isfinite(value)
        }
        return Point(row["version"], row.get("steps") or row["version"], seconds, self.note.started + seconds, values)


def _state(run: RunDir) -> str:
    """Return how a run ended: "finished", "stopped" or "failed"."""
    try:
        state = json.loads(run.status_file.read_text(encoding="utf-8"))["state"]
    except (OSError, ValueError, KeyError, TypeError):
        state = "done" if run.summary_file.is_file() else "running"
    if state == "done":
        return "finished"
    return "stopped" if state == "running" or str(state).startswith(("stopped", "stop_when")) else "failed"


def is_over(run: RunDir) -> bool:
    """True unless a coordinator is at work on the run, as far as its folder tells."""
    if run.status_file.is_file():
        return not status(run.path, ALIVE, time.time())[0]
    try:  # a run that has just begun
        os.kill(int((run.path / "lock").read_text()), 0)
    except (OSError, ValueError):
        return True
    return False


class Held:
    """The lock that keeps two followers from telling one run to one tracker at a time."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def taken(self) -> bool:
        """Take the lock. False if another follower holds it."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, f"{os.getpid()}\n".encode(), 0)
        return True

    def holder(self) -> str:
        """The process id of the follower that holds it."""
        return os.pread(self.fd, 32, 0).decode("ascii", "replace").strip() or "unknown"

    def close(self) -> None:
        os.close(self.fd)


def begun(run: RunDir, wanted: Wanted, say: Say, over: Callable[[], bool], wait: Callable[[float], object]) -> Follower:
    """A follower with its note, from the run's folder. Raises UserError."""
    folder = run.path / "tracking"
    folder.mkdir(exist_ok=True)
    started = run.config_file.stat().st_mtime
    note = Note(folder / f"{wanted.file}.json", started, os.urandom(8).hex())
    return Follower(run, wanted, wanted.made(), note, say, over, wait)


def track(run: RunDir, wanted: Wanted, say: Say, wait: Callable[[float], object]) -> tuple[int, bool]:
    """Tell a run to a tracker until the run has ended. Returns the number of rows told, and True if the tracker knows all rows.

    Raises UserError if another follower does so already, or if the tracker cannot be told.
    """
    lock = Held(_locked(run, wanted))
    try:
        if not lock.taken():
            raise UserError(f"the follower with pid {lock.holder()} tells {run.path} to {wanted} already: let it, or end it")
        follower = begun(run, wanted, say, lambda: is_over(run), wait)
        whole = follower.live()
        return follower.told, whole
    finally:
        lock.close()


def _locked(run: RunDir, wanted: Wanted) -> Path:
    folder = run.path / "tracking"
    folder.mkdir(exist_ok=True)
    return folder / f"{wanted.file}.lock"


def main(words: Sequence[str]) -> int:
    """The process that a run starts. words: the run's folder, the tracker's name, its place. Its standard input ends with the
    run."""
    run, wanted = RunDir(words[0]), Wanted(words[1], words[2])
    ended = [False]

    def wait(seconds: float) -> None:
        if ended[0]:
            select.select([], [], [], seconds)
        elif select.select([0], [], [], seconds)[0] and not os.read(0, 1):
            ended[0] = True

    def over() -> bool:
        wait(0.0)
        return ended[0]

    def say(text: str) -> None:
        print(f"shoal: {wanted}: {text}", file=sys.stderr, flush=True)

    try:
        lock = Held(_locked(run, wanted))
        until = math.inf
        while not lock.taken():  # the follower of an earlier life tells its last rows
            until = min(until, time.monotonic() + 2 * PATIENCE) if over() else math.inf
            if time.monotonic() > until:
                return 1
            wait(LOOK)
        return 0 if begun(run, wanted, say, over, wait).live() else 1
    except UserError as wrong:
        say(f"{wrong}; the run goes on")
    except Exception as raised:  # noqa: BLE001  a tracker's library may raise anything, and the run is not to hear of it
        say(f"given up: {type(raised).__name__}: {raised}; go on later with: shoal track {run.path} {wanted}")
    return 1


def detached(words: Sequence[str]) -> None:
    """Live as a process that nobody waits for. The pipe to the run stays open, under another number than standard output, until
    this process ends; what a tracker's library prints goes nowhere."""
    if os.fork():
        os._exit(0)
    os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    code = main(words)
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    detached(sys.argv[1:])
