"""The work of `shoal serve`: what is served, where, and the life of one of its processes.

The one idea: a plan is plain data, so one process lives it, or several that share its listening sockets.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import json
import math
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.protocol.door import check_bind, is_local, unbound
from shoal.protocol.errors import UserError, printable
from shoal.runs.rundir import RunDir, finite, replaced, short_name
from shoal.serving.splitting import POINTS, split_of
from shoal.serving.stats import merged

if TYPE_CHECKING:
    from shoal.serving.server import Compute, Limits, Served, Server
    from shoal.serving.web import Web

EVERY = 1.0  # seconds between two writes of serve.json
OLD = 3.0  # seconds after which a replica's part of the figures counts no more
FIRST = 90.0  # seconds that the first version may take: torch.compile takes most of that
DRAINING = 30  # seconds that requests under way may take after SIGTERM
BACKLOG = 4_096  # connections that may wait to be accepted


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a server, as `shoal serve --help` tells it. Times are in seconds; 0 is none."""

    sources: tuple[str, ...]
    split: str = ""
    test: str = ""
    sticky: str = ""
    max_batch: int = 64
    max_wait: float = 0.002
    deadline: float = 0.0
    queue: int = 4_096
    replicas: int = 1
    host: str = "127.0.0.1"
    port: int = 8080
    zmq: str = "tcp://127.0.0.1:5557"
    only: str = ""
    token: str = ""
    key: str = ""
    server: str = ""
    job: str = ""
    trust: bool = False
    check: str = ""
    compile: bool = False
    dtype: str = "float32"
    quantize: str = ""
    max_loss: float = 0.01
    folder: str = ""


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


def check(plan: Plan) -> None:
    """Raises UserError for a plan that cannot be carried out, before anything is loaded or bound."""
    if plan.only != "zmq":
        for needed in ("starlette", "uvicorn"):
            if importlib.util.find_spec(needed) is None:
                raise UserError(f"serve over HTTP needs {needed}: pip install 'shoal[serve]', or give --only zmq")
        if not is_local(f"tcp://{plan.host}:1") and not plan.token:
            raise UserError(f"--host {plan.host}: other machines can reach it: give --token @FILE, or leave --host out")
    if plan.only != "http" and not is_local(plan.zmq) and not plan.key:
        raise UserError(
            f"--zmq {plan.zmq}: other machines can reach it: type `shoal keys new NAME` and give --key NAME, or bind "
            "tcp://127.0.0.1:PORT"
        )
    if plan.only != "http" and not plan.zmq.startswith("tcp://"):
        raise UserError(f"--zmq {plan.zmq}: expected tcp://HOST:PORT")
    if plan.queue < plan.max_batch:
        raise UserError(f"--queue {plan.queue}: a request may have --max-batch {plan.max_batch} rows, so give that at least")
    names = names_of(plan)
    split_of(plan.split, names, plan.test)
    if plan.sticky and not re.fullmatch(r"[A-Za-z0-9-]{1,64}", plan.sticky):
        raise UserError(f"--sticky {plan.sticky}: expected the name of a header, such as x-user")


def names_of(plan: Plan) -> list[str]:
    """The names of the models: a run folder's own name, or a coordinator's address. Raises UserError for two of one name."""
    names = [place if "://" in place else RunDir.open(place).name for place in plan.sources]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two models are called {name}: a model's name is that of its run's folder; rename one")
    return names


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
        self._pins = {**_pins_in(self.folder), name: version}
        with suppress(OSError):
            replaced(self.folder / "serve.pins", json.dumps(self._pins))

    def _follow_pins(self, server: Server) -> None:
        if (found := _pins_in(self.folder)) == self._pins:
            return
        self._pins = found
        for name, version in found.items():
            if name in server.books:
                try:
                    server.pin(name, version)
                except UserError as none:
                    server.say(str(none))


def parts_in(folder: Path, now: float, but: int = -1) -> list[dict[str, Any]]:
    """The figures of the replicas that have written lately."""
    found = []
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError):
            part = json.loads(path.read_text(encoding="utf-8"))
            if path.stem != str(but) and now - part["written"] <= OLD:
                found.append(part)
    return found


def _pins_in(folder: Path) -> dict[str, int | None]:
    try:
        found: dict[str, int | None] = json.loads((folder / "serve.pins").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


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


def threads_found(threads: int) -> str:
    """The threads that this process computes with, in words: torch's, and those of the libraries beside it."""
    from shoal.runs.threads import cores

    found = [f"torch {threads}"]
    with suppress(ModuleNotFoundError):
        from threadpoolctl import threadpool_info

        found += [f"{one['internal_api']} {one['num_threads']}" for one in threadpool_info()]
    asked, have = os.environ.get("OMP_NUM_THREADS", "1"), cores()
    told = ", ".join(dict.fromkeys(found))
    return f"threads: {told} (OMP_NUM_THREADS={printable(asked, 20)}), of {have} core{'s' * (have > 1)}"


def served(plan: Plan, say: Callable[[str], None]) -> list[Served]:
    """The models of a plan. Raises UserError."""
    from shoal.serving.models import Faster, Maker
    from shoal.serving.server import Served

    faster = Faster(plan.compile, plan.dtype, plan.quantize, plan.max_loss)
    own_check = _own_check(plan.check)
    found = []
    for name, place in zip(names_of(plan), plan.sources, strict=True):
        job, source = _source(plan, name, place, say)
        maker = Maker(job, faster, plan.max_batch, lambda text, name=name: say(f"{name}: {text}"))  # type: ignore[misc]
        found.append(Served(name, maker.inputs, maker, source, place, own_check, maker.example))
    return found


def _source(plan: Plan, name: str, place: str, say: Callable[[str], None]) -> tuple[Any, Any]:
    from shoal.serving.following import Coordinator, RunFolder

    if "://" not in place:
        from shoal.runs.run import trusted

        run = trusted(place, plan.trust)
        return run.job, RunFolder(run.dir.path)
    from shoal.commands.access import of_actor
    from shoal.jobs.catalog import find
    from shoal.runs.choosing import absolute

    keys = of_actor(plan.key, plan.server) if plan.server else None
    own = find(absolute(plan.job)) if plan.job else None
    source = Coordinator(place, keys, own, f"server@{socket.gethostname()}:{os.getpid()}")
    return source.join(say), source


def _own_check(name: str) -> Callable[[int, Compute], str] | None:
    """The user's own check, (version, predict) -> "" or None or True for a good version, False or a reason for a bad one."""
    if not name:
        return None
    from shoal.jobs.catalog import named
    from shoal.protocol.errors import takes
    from shoal.runs.choosing import absolute

    own = named(absolute(name))
    takes("--check", own, "a function (version, predict) -> a reason to refuse the version, or None", 0, len)

    def checked(version: int, predict: Compute) -> str:
        found = own(version, predict)
        if found is None or found is True or found == "":
            return ""
        return found if isinstance(found, str) else f"{name} says so"

    return checked


def plan_of(found: Mapping[str, Any]) -> Plan:
    """The plan that was written as JSON."""
    return Plan(**{**found, "sources": tuple(found["sources"])})
