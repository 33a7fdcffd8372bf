"""The places of a server: the sockets at which it listens, and the folder that it writes.

The one idea: both are had before the server's first process lives, so a port or a folder that is in use is told at once, and
replicas share what was opened once.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from shoal.protocol.door import unbound
from shoal.protocol.errors import UserError
from shoal.runs.rundir import RunDir, short_name
from shoal.serving.plan import Plan

OLD = 3.0  # seconds after which a replica's part of the figures counts no more
BACKLOG = 4_096  # connections that may wait to be accepted


@dataclass(slots=True)
class Doors:
    """The listening sockets of a server; None: it has none of this kind. Addresses as a client types them."""

    http: socket.socket | None = None
    zmq: socket.socket | None = None
    addresses: dict[str, str] = field(default_factory=lambda: {"http": "", "zmq": ""})

    def close(self) -> None:
        for one in (self.http, self.zmq):
            if one is not None:
                one.close()


def opened(plan: Plan) -> Doors:
    """The listening sockets. Raises UserError if a port is in use."""
    doors = Doors()
    try:
        if plan.only != "zmq":
            doors.http = _listening(plan.host, plan.port, "--port")
            port = doors.http.getsockname()[1]
            doors.addresses["http"] = f"http://{f'[{plan.host}]' if ':' in plan.host else plan.host}:{port}"
        if plan.only != "http":
            host, _, port = plan.zmq.removeprefix("tcp://").rpartition(":")
            doors.zmq = _listening(host.strip("[]").replace("*", "0.0.0.0"), 0 if port == "*" else int(port), "--zmq")
            doors.addresses["zmq"] = f"tcp://{host}:{doors.zmq.getsockname()[1]}"
    except UserError:
        doors.close()
        raise
    return doors


def _listening(host: str, port: int, flag: str) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        made = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError, ValueError) as refused:
        raise UserError(f"{flag}: {unbound(f'tcp://{host}:{port}', refused)}") from None
    made.setblocking(False)
    return made


class Folder:
    """The folder of serve.json(l): the run's own folder for one run, unless another server uses it; else a new one."""

    def __init__(self, plan: Plan, names: Sequence[str], now: datetime) -> None:
        self._lock = -1
        own = Path(plan.folder) if plan.folder else None
        if own is None and len(plan.sources) == 1 and "://" not in plan.sources[0]:
            own = RunDir.open(plan.sources[0]).path
        theirs = own is not None and self._claimed(own, bool(plan.folder))
        self._made = not theirs
        self.path = own if own is not None and theirs else _fresh(names, now)
        if self._lock < 0:
            self._claimed(self.path, True)
        self.figures = self.path / "serve.json"
        self.pins = self.path / "serve.pins"
        self.parts = self.path / "serve.parts"
        with suppress(OSError):
            self.pins.unlink(missing_ok=True)

    def _claimed(self, folder: Path, asked: bool) -> bool:
        """True if this server has the folder for itself. Raises UserError if the user asked for it and it cannot be had."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / "serve.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as refused:
            if asked:
                raise UserError(f"--folder {folder}: {refused.strerror}: name a folder where you may write") from None
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            if asked:
                raise UserError(f"--folder {folder}: another server uses it: name another folder") from None
            return False
        self._lock = lock
        return True

    def close(self) -> None:
        """Let others have the folder. One that was made for this server, which wrote nothing into it, is removed."""
        if self._lock >= 0:
            with suppress(OSError):
                if self._made and [one.name for one in self.path.iterdir()] == ["serve.lock"]:
                    (self.path / "serve.lock").unlink()
                    self.path.rmdir()
            os.close(self._lock)
        self._lock = -1


def _fresh(names: Sequence[str], now: datetime) -> Path:
    made = Path("serving") / f"{short_name(names[0])}-{now:%Y%m%d-%H%M%S}"
    for number in range(1, 1_000):
        path = made if number == 1 else made.with_name(f"{made.name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as refused:
            raise UserError(f"cannot make the folder {path} ({refused.strerror}): name one with --folder") from None
        return path
    raise UserError(f"{made} and 998 more exist: name a folder with --folder")


def parts_in(folder: Path, now: float, but: int = -1) -> list[dict[str, Any]]:
    """The figures of the replicas that have written lately."""
    found = []
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError):
            part = json.loads(path.read_text(encoding="utf-8"))
            if path.stem != str(but) and now - part["written"] <= OLD:
                found.append(part)
    return found


def pins_in(folder: Path) -> dict[str, int | None]:
    try:
        found: dict[str, int | None] = json.loads((folder / "serve.pins").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found
