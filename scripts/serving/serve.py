"""The life of a process of `shoal serve`.

The one idea: a plan is plain data, so one process lives it, or several that share its listening sockets.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.protocol.door import check_bind, is_local
from shoal.protocol.errors import UserError
from shoal.runs.rundir import finite, replaced
from shoal.serving.making import served, threads_found
from shoal.serving.places import Doors, Folder, opened, parts_in, pins_in
from shoal.serving.plan import Plan, check, names_of
from shoal.serving.splitting import POINTS, split_of
from shoal.serving.stats import merged

if TYPE_CHECKING:
    from shoal.serving.server import Limits, Server
    from shoal.serving.web import Web

EVERY = 1.0  # seconds between two writes of serve.json
FIRST = 90.0  # seconds that the first version may take: torch.compile takes most of that
DRAINING = 30  # seconds that requests under way may take after SIGTERM


def serve(plan: Plan) -> int:
    """Carry out a plan until SIGTERM or Ctrl-C. Returns the exit code. Raises UserError."""
    check(plan)
    names = names_of(plan)
    doors = opened(plan)
    folder = None
    try:
        folder = Folder(plan, names, datetime.now())
        if plan.replicas > 1:
            from shoal.serving.replicas import supervised

            return supervised(plan, doors, folder.path)
        return Life(plan, doors, folder.path, 0).live()
    finally:
        doors.close()
        if folder is not None:
            folder.close()


class Life:
    """The life of one process of a server. number: its place among the replicas; 0 speaks to a person. alone: True if it
    is the only one, and writes serve.json itself. quiet: True: it does not say where the server is."""

    def __init__(self, plan: Plan, doors: Doors, folder: Path, number: int, alone: bool = True, quiet: bool = False) -> None:
        self.plan, self.doors, self.folder, self.number, self.alone = plan, doors, folder, number, alone
        self.quiet = quiet or number > 0
        self._told: int | None = None  # the signal that ended it
        self._begun = False  # True once it answers, and looks at `_end`
        self._end = threading.Event()
        self._broken = False  # True: a thread of this process ended by a fault
        self._pins: dict[str, int | None] = {}

    def live(self) -> int:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, self._heard)
        server = self._server()
        server.start()
        try:
            if not server.first(FIRST):
                self._check_first(server)
            self._announce(server)
            self._begun = True
            self._answer(server)
        finally:
            server.drain()
        return 1 if self._broken else 130 if self._told == signal.SIGINT else 0

    def _heard(self, number: int, frame: object) -> None:
        """Take a signal. Raises SystemExit before the process answers: it may wait for a coordinator that never comes."""
        first, self._told = self._told is None, number
        self._end.set()
        if first and not self._begun:
            raise SystemExit(130 if number == signal.SIGINT else 0)

    def _server(self) -> Server:
        from shoal.runs.threads import few_for_good
        from shoal.serving.server import Diary, Limits, Server

        plan = self.plan
        few_for_good()
        limits = Limits(plan.max_batch, plan.max_wait, plan.deadline or math.inf, plan.queue)
        models = served(plan, self._say)
        split = split_of(plan.split, [one.name for one in models], plan.test)
        self.threads = few_for_good()  # now that torch is loaded
        rng = secrets.SystemRandom()
        return Server(
            models,
            split,
            limits,
            time.monotonic,
            time.time,
            lambda: rng.randrange(POINTS),
            self._about(split.test, [points / 100 for points in split.shares], limits),
            nonce=secrets.token_hex(4),
            diary=Diary(self.folder / "serve.jsonl"),
            say=self._say,
        )

    def _about(self, test: str, shares: Sequence[float], limits: Limits) -> dict[str, Any]:
        deadline = None if limits.deadline == math.inf else limits.deadline
        bounds = {"max_batch": limits.max_batch, "max_wait": limits.max_wait, "deadline": deadline, "queue_limit": limits.most}
        about = {"started": time.time(), "pids": [os.getpid()], **self.doors.addresses}
        return {**about, "test": test, "split": list(shares), **bounds}

    def _check_first(self, server: Server) -> None:
        """Raises UserError if a model's first version was refused. A model that has none yet is waited for, unready."""
        for book in server.books.values():
            if book.serving is None and book.refused:
                version, why = book.refused[-1]
                raise UserError(f"{book.name}: version {version} cannot serve: {why}")

    def _announce(self, server: Server) -> None:
        if self.quiet:
            return
        models = [
            f"{book.name} version {book.serving.version}" if book.serving else f"{book.name} (no version yet)"
            for book in server.books.values()
        ]
        http, zmq = self.doors.addresses["http"], self.doors.addresses["zmq"]
        where = " and ".join(filter(None, (f"POST {http}/predict" if http else "", zmq)))
        print(f"shoal: serving {', '.join(models)} at {where}; {threads_found(self.threads)}", flush=True)

    def _say(self, text: str) -> None:
        if not self.number:
            print(f"shoal: {text}", file=sys.stderr, flush=True)

    # While it lives

    def _answer(self, server: Server) -> None:
        from shoal.protocol.link import Hub
        from shoal.serving.web import Web
        from shoal.serving.wire import LARGEST, Wire

        wire = None
        if self.doors.zmq is not None:
            keys = None if is_local(self.plan.zmq) else _server_keys(self.plan.key)
            check_bind(self.plan.zmq, keys)
            hub = Hub(self.doors.addresses["zmq"], keys, listener=os.dup(self.doors.zmq.fileno()), largest=LARGEST)
            wire = Wire(hub, server, lambda: self._figures(server), self._end.set)
            wire.start()
        ticker = threading.Thread(target=self._tick, args=(server,), name="figures", daemon=True)
        ticker.start()
        if self.doors.http is not None:
            web = Web(server, lambda: self._figures(server), self._pinned, self.plan.token, self.plan.sticky, self.plan.host)
            _listen(web, self.doors.http, self._end)
        self._end.wait()
        if wire is not None:
            wire.closing, self._broken = True, wire.fault is not None
        server.drain()
        if wire is not None:
            wire.end()
        ticker.join(5.0)
        self._write(server)

    def _tick(self, server: Server) -> None:
        while not self._end.is_set():
            self._write(server)
            self._follow_pins(server)
            self._end.wait(EVERY)

    def _write(self, server: Server) -> None:
        from shoal.serving.server import write_figures

        if self.alone:
            write_figures(self.folder / "serve.json", [server.figures()])
        else:
            with suppress(OSError):  # a full disk: the part grows old
                part = self.folder / "serve.parts" / f"{self.number}.json"
                replaced(part, json.dumps(finite(server.figures()), allow_nan=False))

    def _figures(self, server: Server) -> dict[str, Any]:
        own = server.figures()
        others = [] if self.alone else parts_in(self.folder / "serve.parts", own["written"], but=self.number)
        found: dict[str, Any] = finite(merged([own, *others]))
        return found

    def _pinned(self, name: str, version: int | None) -> None:
        """Tell the other processes what a user pinned."""
        self._pins = {**pins_in(self.folder), name: version}
        with suppress(OSError):
            replaced(self.folder / "serve.pins", json.dumps(self._pins))

    def _follow_pins(self, server: Server) -> None:
        if (found := pins_in(self.folder)) == self._pins:
            return
        self._pins = found
        for name, version in found.items():
            if name in server.books:
                try:
                    server.pin(name, version)
                except UserError as none:
                    server.say(str(none))


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's loop, which takes a tenth less CPU a request; None where it is not installed."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return None
    made: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return made


def _listen(web: Web, door: socket.socket, end: threading.Event) -> None:
    """Answer HTTP until a signal comes, and then until the requests under way are answered."""
    import uvicorn

    class Unsignalled(uvicorn.Server):
        """A server that leaves signals to this process: one that came while uvicorn starts would be lost."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    async def main() -> None:
        config = uvicorn.Config(
            web,
            log_config=None,
            log_level="error",
            access_log=False,
            lifespan="off",
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=DRAINING,
        )
        server = Unsignalled(config)

        async def watch() -> None:
            await asyncio.to_thread(end.wait)
            server.should_exit = True

        watching = asyncio.create_task(watch())
        try:
            await server.serve(sockets=[socket.socket(fileno=os.dup(door.fileno()))])
        finally:
            end.set()  # also if uvicorn ended by itself: its process would live on and answer nobody
            await watching

    with asyncio.Runner(loop_factory=_fast_loop()) as runner:
        runner.run(main())


def _server_keys(name: str) -> Any:
    from dataclasses import replace

    from shoal.commands.access import of_coordinator
    from shoal.protocol.budget import Budget

    keys = of_coordinator(name)
    return keys and replace(keys, budget=Budget(messages=100_000))
