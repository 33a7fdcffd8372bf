"""Several processes of one server, which share its listening sockets, and the process that replaces those that die.

The one idea: the sockets are opened once and inherited. So no request that waits to be accepted is lost with a process, and no
port is fought for.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shoal.protocol.errors import UserError
from shoal.protocol.parent import die_with_parent
from shoal.serving.places import Doors, parts_in
from shoal.serving.plan import Plan, plan_of
from shoal.serving.serve import DRAINING, EVERY, Life

LOOK = 0.1  # seconds between two looks for processes that died
AGAIN = (0.1, 10.0)  # seconds until a process that died young is replaced: at first, and at most (doubled each time)
YOUNG = 10.0  # seconds


@dataclass(slots=True)
class Place:
    """A replica's place. start_at: time of the next start, if it has no process."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    lives: int = 0
    started: float = 0.0
    start_at: float = 0.0
    pause: float = AGAIN[0]


def supervised(plan: Plan, doors: Doors, folder: Path, clock: Callable[[], float] = time.monotonic) -> int:
    """Keep `plan.replicas` processes until SIGTERM or Ctrl-C, which all of them drain at. Returns the exit code: 2 if the first
    start fails by the user's mistake."""
    parts = folder / "serve.parts"
    shutil.rmtree(parts, ignore_errors=True)
    try:
        parts.mkdir(parents=True)
    except OSError as refused:
        raise UserError(f"{folder}: {refused.strerror}: replicas need a folder where they may write; give --folder") from None
    ended, told = threading.Event(), list[int]()

    def heard(number: int, frame: object) -> None:
        told.append(number)
        ended.set()

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, heard)
    places = [Place(number) for number in range(plan.replicas)]
    written = 0.0
    try:
        while not ended.is_set():
            for place in places:
                if (wrong := _looked_after(place, plan, doors, folder, clock())) is not None:
                    return wrong
            if clock() - written >= EVERY:
                written = clock()
                _write(folder)
            ended.wait(LOOK)
    finally:
        _end(places)
        _write(folder)
        shutil.rmtree(parts, ignore_errors=True)
    return 130 if told[0] == signal.SIGINT else 0


def _looked_after(place: Place, plan: Plan, doors: Doors, folder: Path, now: float) -> int | None:
    """Start or replace the process of a place. Returns the exit code of a process that can never do better; else None."""
    if place.process is not None and (code := place.process.poll()) is not None:
        if code == 2 and place.lives == 1:
            return 2
        young = now - place.started < YOUNG
        place.pause = min(2 * place.pause, AGAIN[1]) if young else AGAIN[0]
        told = f"replica {place.number} (pid {place.process.pid}) ended with {code}; another takes its place"
        print(f"shoal: {told}", file=sys.stderr, flush=True)
        place.process, place.start_at = None, now + (place.pause if young else 0.0)
        with suppress(OSError):
            (folder / "serve.parts" / f"{place.number}.json").unlink()
    if place.process is None and now >= place.start_at:
        place.process, place.started = _started(place.number, place.lives > 0, plan, doors, folder), now
        place.lives += 1
    return None


def _started(number: int, quiet: bool, plan: Plan, doors: Doors, folder: Path) -> subprocess.Popen[bytes]:
    """Start a replica, which gets its plan on its standard input: it may hold a token. quiet: True for a later life, which
    does not say again where the server is."""
    fds = {name: one.fileno() for name, one in (("http", doors.http), ("zmq", doors.zmq)) if one is not None}
    told = {
        "plan": asdict(plan),
        "fds": fds,
        "addresses": doors.addresses,
        "folder": str(folder),
        "number": number,
        "quiet": quiet,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "shoal.serving.replicas"],
        stdin=subprocess.PIPE,
        pass_fds=tuple(fds.values()),
        start_new_session=True,  # a Ctrl-C reaches the first process alone, which tells the others
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(json.dumps(told).encode())
    return process


def _write(folder: Path) -> None:
    from shoal.serving.server import write_figures

    if parts := parts_in(folder / "serve.parts", time.time()):
        write_figures(folder / "serve.json", parts)


def _end(places: list[Place]) -> None:
    alive = [place.process for place in places if place.process is not None and place.process.poll() is None]
    for process in alive:
        process.terminate()
    for process in alive:
        try:
            process.wait(DRAINING + 5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main() -> int:
    """The life of a replica."""
    die_with_parent(os.getppid())
    told: dict[str, Any] = json.load(sys.stdin)
    doors = Doors(addresses=told["addresses"])
    if (fd := told["fds"].get("http")) is not None:
        doors.http = socket.socket(fileno=fd)
    if (fd := told["fds"].get("zmq")) is not None:
        doors.zmq = socket.socket(fileno=fd)
    try:
        return Life(plan_of(told["plan"]), doors, Path(told["folder"]), told["number"], alone=False, quiet=told["quiet"]).live()
    except UserError as wrong:
        print(f"shoal: {wrong}", file=sys.stderr, flush=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
