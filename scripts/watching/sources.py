"""The sources that the page shows: runs, sweeps, servers, and coordinators elsewhere.

The one idea: a source is read anew for each page that is open, from that page's own marks, so a page that comes back goes on
where it was, and a slow page delays no other.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from shoal.protocol.door import ClientKeys
from shoal.protocol.errors import UserError
from shoal.runs.rundir import RunDir, finite
from shoal.watching.tail import Mark, Tail, last_lines

LINES = 60  # of log.txt
NAMES = 200  # metrics of a row, at most
LONG = 100  # characters of a name
WITHIN = 60.0  # seconds without a step that are no fault
AGAIN = 2.0  # seconds between two questions to a coordinator elsewhere
POINTS = 20_000  # states of a coordinator elsewhere that are kept

Event: TypeAlias = tuple[str, dict[str, Any]]


class Cursor(Protocol):
    """A page's place in a source."""

    def news(self) -> Iterator[Event]:
        """Return the news since the last call: (name of an event, data)."""
        ...

    @property
    def mark(self) -> str:
        """The place, as text without a comma: the source gives the same cursor for it later."""
        ...


class Source(Protocol):
    """A source. about: what a page is told once: kind ("run", "sweep", "server", "elsewhere"), name, path, and more by kind."""

    def about(self) -> dict[str, Any]: ...

    def cursor(self, mark: str) -> Cursor: ...


def row_of(line: bytes) -> list[Any] | None:
    """A line of metrics.jsonl as [version, seconds, steps, contributions, metrics]; None for a line that is no row. What is no
    finite number among the metrics is None."""
    try:
        row = json.loads(line)
        version, seconds = int(row["version"]), float(row["seconds"])
        metrics = {str(name)[:LONG]: _number(value) for name, value in list(row["metrics"].items())[:NAMES]}
        return [version, round(seconds, 3), int(row["steps"]), int(row["contributions"]), metrics]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None


def _number(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(f"{value:.6g}") if good else None


class Content:
    """The JSON object in a file, read when the file was replaced. None: no such file, or no object in it."""

    def __init__(self, path: Path, most: int = 1 << 22) -> None:
        self.path, self.most = path, most
        self._seen: tuple[int, int, int] | None = None
        self._first = True

    def new(self) -> tuple[bool, dict[str, Any] | None]:
        """Return whether the content is another than at the last call, and the content if so."""
        try:
            found = os.stat(self.path)
            seen = (found.st_ino, found.st_size, found.st_mtime_ns)
        except OSError:
            seen = None
        if seen == self._seen and not self._first:
            return False, None
        self._seen, self._first = seen, False
        return True, self._read() if seen else None

    def _read(self) -> dict[str, Any] | None:
        try:
            with self.path.open("rb") as file:
                found = json.loads(file.read(self.most), parse_constant=lambda name: None)
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None


class RunSource:
    """The folder of a run."""

    def __init__(self, path: Path) -> None:
        self.run = RunDir(path)

    def about(self) -> dict[str, Any]:
        told = {"kind": "run", "name": self.run.name, "path": str(self.run.path)}
        try:
            config = self.run.config()
        except (UserError, OSError) as broken:
            return {**told, "why": str(broken)}
        settings = {name: _short(value) for name, value in config.settings.items()}
        return {**told, "job": config.job, "seed": config.seed, "settings": settings}

    def cursor(self, mark: str) -> Cursor:
        return RunCursor(self.run, Mark.read(mark))


class RunCursor:
    """A page's place in a run: a byte of metrics.jsonl. The status and the last reports are told as they are now."""

    def __init__(self, run: RunDir, mark: Mark | None) -> None:
        self._rows, self._log = Tail(run.metrics_file, mark), Content(run.log_file, 0)
        self._status, self._serve = Content(run.status_file), Content(run.path / "serve.json")
        self._there: bool | None = None
        self.run = run

    @property
    def mark(self) -> str:
        return str(self._rows.mark or "")

    def news(self) -> Iterator[Event]:
        if (there := self.run.path.is_dir()) != self._there:
            self._there = there
            yield "folder", {"there": there}
        while (piece := self._rows.new()) is not None:
            rows = [row for line in piece.lines if (row := row_of(line)) is not None]
            yield "rows", {"rows": rows, "fresh": piece.fresh, "thinned": piece.thinned}
        changed, status = self._status.new()
        if changed:
            yield "status", {"status": status}
        changed, served = self._serve.new()
        if served:
            yield "serve", {"serve": served}
        changed, _ = self._log.new()
        if changed:
            yield "log", {"lines": [line.decode("utf-8", "replace") for line in last_lines(self.run.log_file, LINES)]}


class ServerSource:
    """The folder of `shoal serve`, which writes serve.json once a second."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def about(self) -> dict[str, Any]:
        return {"kind": "server", "name": self.path.resolve().name, "path": str(self.path)}

    def cursor(self, mark: str) -> Cursor:
        return ServerCursor(self.path)


class ServerCursor:
    mark = ""

    def __init__(self, path: Path) -> None:
        self._content = Content(path / "serve.json")

    def news(self) -> Iterator[Event]:
        changed, found = self._content.new()
        if changed:
            yield "serve", {"serve": found}


Ask: TypeAlias = Callable[[], tuple[bool, dict[str, Any]]]


class Elsewhere:
    """A coordinator at an address, which is asked every AGAIN seconds by a thread of its own, whoever looks. ask: gives whether
    the run is well, and what `shoal status ADDRESS` says."""

    def __init__(self, address: str, ask: Ask, clock: Callable[[], float] = time.monotonic) -> None:
        self.address, self.ask, self.clock = address, ask, clock
        self.status: dict[str, Any] | None = None
        self.rows: list[list[Any]] = []
        self.number = 0  # answers so far
        self._began, self._ended = clock(), threading.Event()

    def about(self) -> dict[str, Any]:
        return {"kind": "elsewhere", "name": (self.status or {}).get("run") or self.address, "path": self.address}

    def cursor(self, mark: str) -> Cursor:
        return ElsewhereCursor(self)

    def begin(self) -> None:
        """Ask until `end`, in a thread of its own."""
        threading.Thread(target=self._live, name="elsewhere", daemon=True).start()

    def end(self) -> None:
        self._ended.set()

    def _live(self) -> None:
        while not self._ended.is_set():
            self.look()
            self._ended.wait(AGAIN)

    def look(self) -> None:
        """Ask once."""
        try:
            _, found = self.ask()
        except UserError as wrong:
            found = {"address": self.address, "state": "no answer", "why": str(wrong)}
        if "version" in found:
            seconds = round(self.clock() - self._began, 1)
            self.rows.append([found["version"], seconds, found["steps"], 0, {"version": found["version"]}])
            if len(self.rows) > POINTS:
                del self.rows[: POINTS // 2 : 2]
        self.status = found
        self.number += 1


class ElsewhereCursor:
    mark = ""

    def __init__(self, source: Elsewhere) -> None:
        self.source, self._number, self._told = source, -1, 0

    def news(self) -> Iterator[Event]:
        source = self.source
        if self._number == source.number or source.status is None:
            return
        fresh = self._number < 0 or len(source.rows) < self._told
        self._number = source.number
        rows = list(source.rows) if fresh else source.rows[self._told :]
        self._told = len(source.rows)
        yield "rows", {"rows": rows, "fresh": fresh, "thinned": False}
        yield "status", {"status": source.status}


def _short(value: Any) -> Any:
    return value if isinstance(value, int | float | bool) else str(value)[:LONG]


def sources_of(
    places: list[str],
    keys: ClientKeys | None = None,
    ask: Callable[[str, ClientKeys | None, float, float], tuple[bool, dict[str, Any]]] | None = None,
    root: Path = Path(),
) -> list[Source]:
    """A source for each place: the folder of a run, a sweep or a server, or an address. No place: the newest run or sweep under
    runs/ and sweeps/ of `root`. Raises UserError for a place that is none of these."""
    return [_source(place, keys, ask) for place in places or [str(newest(root))]]


def _source(place: str, keys: ClientKeys | None, ask: Callable[..., tuple[bool, dict[str, Any]]] | None) -> Source:
    if "://" in place:
        from shoal.runs.status import asked

        how = ask or asked
        return Elsewhere(place, lambda: how(place, keys, WITHIN, time.time()))
    path = Path(place)
    path = path.parent / path.readlink() if path.is_symlink() else path
    if (path / "sweep.toml").is_file():
        from shoal.watching.sweeps import SweepSource

        return SweepSource(path)
    if (path / "serve.json").is_file() and not (path / "config.toml").is_file():
        return ServerSource(path)
    return RunSource(RunDir.open(path).path)


def newest(root: Path = Path()) -> Path:
    """The run or sweep whose folder was begun last. Raises UserError if there is none."""
    files = [*root.glob("runs/*/config.toml"), *root.glob("sweeps/*/sweep.toml")]
    found = {file.parent.resolve(): file for file in files if not file.parent.is_symlink()}
    if not found:
        raise UserError("there is no run in runs/ and no sweep in sweeps/: start one (shoal simulate digits), or name a folder")
    return max(found.values(), key=lambda file: file.stat().st_mtime).parent


def plain(event: Mapping[str, Any]) -> str:
    """An event's data as one line of JSON."""
    try:
        return json.dumps(event, separators=(",", ":"), allow_nan=False)
    except ValueError:  # a number such as 1e999 in a file
        return json.dumps(finite(event), separators=(",", ":"), allow_nan=False)
