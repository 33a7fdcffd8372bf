"""Prometheus as a tracker: an endpoint that it scrapes, or a file for the textfile collector of its node exporter.

The one idea: Prometheus samples, so it is shown the newest row. The user's metrics are one family, with the metric's name as a
label, because two names may be one after their letters are made legal.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from shoal.protocol.errors import UserError
from shoal.runs.rundir import replaced
from shoal.tracking.trackers import About, Down, Point

TYPE = "text/plain; version=0.0.4; charset=utf-8"
LAST = 60.0  # seconds after the end of a run for which its last row can be scraped, if it was not yet
OWN = {  # value of a row -> what it says
    "version": "newest version of the weights",
    "seconds": "seconds that the run has run",
    "steps": "environment steps",
    "contributions": "contributions folded in",
    "actors": "actors of the run",
    "lag/mean": "mean lag of the contributions, in versions",
}


def check(word: str, to: str) -> None:
    """Raises UserError for a place that is neither a port nor a file."""
    if to.isascii() and to.isdigit():
        if not 0 < int(to) < 65_536:
            raise UserError(f"track={word}: a port is a number from 1 to 65535")
    elif not to.endswith(".prom"):
        raise UserError(f"track={word}: expected a port of this machine, or a file of the textfile collector, FILE.prom")


def exposition(about: About, point: Point | None, state: str) -> str:
    """The newest row in Prometheus' text format. state: "running", or how the run ended."""
    run = f'run="{_escaped(about.name)}"'
    up = f'# HELP shoal_run 1 for the state of the run\n# TYPE shoal_run gauge\nshoal_run{{{run},state="{state}"}} 1\n'
    if point is None:
        return up
    lines = []
    for name, what in OWN.items():
        if name in point.values:
            family = f"shoal_{name.replace('/', '_')}"
            lines += [f"# HELP {family} {what}", f"# TYPE {family} gauge", f"{family}{{{run}}} {point.values[name]!r}"]
    lines += ["# HELP shoal_metric last value of a metric of the run", "# TYPE shoal_metric gauge"]
    lines += [
        f'shoal_metric{{{run},name="{_escaped(name)}"}} {value!r}' for name, value in point.values.items() if name not in OWN
    ]
    return up + "\n".join(lines) + "\n"


def _kept(last: Any) -> Point | None:
    """The row that an earlier follower showed last, from its memory; None for anything else."""
    try:
        return Point(**{**last, "values": {str(name): float(value) for name, value in last["values"].items()}})
    except (TypeError, KeyError, AttributeError, ValueError):
        return None


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class Door(ThreadingHTTPServer):
    """The server of an endpoint. A scraper that goes away in the middle of an answer is no error."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Prometheus:
    """The newest row of a run. to: a port of the loopback address, or FILE.prom."""

    unsure = 0

    def __init__(self, to: str) -> None:
        self.file = None if to.isdigit() else Path(to)
        self.port = int(to) if to.isdigit() else 0
        self.about: About | None = None
        self.shown, self.over = exposition(About("", "", 0.0, {}), None, "running"), False
        self.scraped = threading.Event()  # what is shown after the end was scraped
        self.values: dict[str, float] = {}

    def begin(self, about: About, memory: dict[str, Any]) -> None:
        self.about, self.memory = about, memory
        self.point = _kept(memory.get("last"))
        if self.file is None:
            try:
                self.door = Door(("127.0.0.1", self.port), self._page())
            except OSError as taken:
                raise UserError(
                    f"cannot listen on 127.0.0.1:{self.port} ({taken.strerror}): prometheus=PORT names another"
                ) from None
            threading.Thread(target=self.door.serve_forever, args=(0.1,), name="scrapes", daemon=True).start()
        self._show("running")

    def tell(self, points: Sequence[Point]) -> None:
        values = dict(self.point.values) if self.point else {}
        for point in points:
            values |= point.values  # a metric that is not in each row keeps its last value
        last = points[-1]
        self.point = Point(last.version, last.step, last.seconds, last.at, values)
        self._show("running")
        self.memory["last"] = {name: getattr(self.point, name) for name in Point.__slots__}

    def end(self, state: str) -> None:
        self._show(state)
        self.over = True
        if self.file is None:
            self.scraped.wait(LAST)
            self.door.shutdown()
            self.door.server_close()

    def _show(self, state: str) -> None:
        assert self.about is not None, "begun"
        self.shown = exposition(self.about, self.point, state)
        if self.file is not None:
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                replaced(self.file, self.shown)
            except OSError as refused:
                raise Down(f"cannot write {self.file} ({refused.strerror})") from None

    def _page(self) -> type[BaseHTTPRequestHandler]:
        tracker = self

        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found, last = self.path.partition("?")[0] == "/metrics", tracker.over  # of what is shown from now on
                body = tracker.shown.encode() if found else b"see /metrics\n"
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", TYPE if found else "text/plain")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                if found and last:
                    tracker.scraped.set()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Page
