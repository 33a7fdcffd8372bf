"""Actors with a key that lie, each beside honest actors on a live coordinator: they must not stop, slow or spoil honest work.

The one idea: honest tasks take a fixed time, so their rate shows waiting alone. It is measured by turns while a liar is quiet
and while it lies, in the same run, so that other work of the machine weighs on both alike; and every refusal of an honest
contribution is counted.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from shoal.actors.loop import Actor, host_id
from shoal.aggregators.fedbuff import FedBuffServer
from shoal.benchmarks.case import Finding
from shoal.coordinator.checks import Inspector
from shoal.coordinator.deciding.bounds import Bounds, Goal
from shoal.coordinator.deciding.core import Core
from shoal.coordinator.deciding.plans.stream import Stream
from shoal.coordinator.learner import LearnerThread
from shoal.coordinator.reports import Progress, Report
from shoal.coordinator.server import Outside, Server
from shoal.protocol.codec import Terms, encode, pack_welcome
from shoal.protocol.door import client_keys, server_keys
from shoal.protocol.keys import KeyFolder
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.link import Hub, Line
from shoal.protocol.messages import PROTOCOL, Assign, Beat, Contribute, Envelope, Have, Hello, Weights, Welcome
from shoal.protocol.work import Metrics, Task, Work

LAYOUT = Layout.of({"w": ("f4", (64,))})
HONEST, BATCH = 4, 4
TASK = 0.02  # seconds of an honest task
TURNS = 10  # times that the liar is quiet and lies
JOINING = 20.0  # seconds that honest actors may take to begin

Lie = Callable[[Contribute, int], tuple[Contribute, Bundle]]
"""(an honest contribution, how many came before) -> what is sent in its place."""


def _ones(value: float = 1e-3) -> Bundle:
    return Bundle.pack({"w": np.full(64, value, np.float32)}, LAYOUT)


def claims(work: Contribute, number: int) -> tuple[Contribute, Bundle]:
    """Weights, steps and times that no task can have."""
    wild: tuple[dict[str, Any], ...] = (
        {"weight": 1e300}, {"weight": 2.0**33}, {"weight": float("nan")}, {"steps": 2**60}, {"trained": 1e300},
        {"totals": {"loss": (1.0, -1.0)}}, {"waited": float("inf")},
    )  # fmt: skip
    return replace(work, **wild[number % len(wild)]), _ones()


def reach(work: Contribute, number: int) -> tuple[Contribute, Bundle]:
    """Entries near the limit of the exact sum, which would leave others no room."""
    return work, _ones(2.0**29.99 if number % 2 else -(2.0**29.99))


def names(work: Contribute, number: int) -> tuple[Contribute, Bundle]:
    """Metrics of new names in every contribution."""
    return replace(work, totals={f"{number}-{each}": (1.0, 1.0) for each in range(30)}), _ones()


def samples(work: Contribute, number: int) -> tuple[Contribute, Bundle]:
    """Figures whose sum is no number, or overflows."""
    wild = ((float("inf"), float("-inf")), (1.7e308, 1.7e308), (float("nan"),))[number % 3]
    return replace(work, samples={"return": wild, "length": wild}, totals={"loss": (wild[0], 1.0)}), _ones()


LIES: Mapping[str, Lie] = MappingProxyType({"claims": claims, "range": reach, "names": names, "samples": samples})
LIARS = ("flood", *LIES)


@dataclass
class Pacer:
    """An honest worker, whose tasks take TASK seconds."""

    done: list[float]
    pause: threading.Event = field(default_factory=threading.Event)  # never set

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        self.pause.wait(TASK)
        self.done.append(time.monotonic())
        return Work(_ones(), 2.0, totals={"loss": (1.0, 2.0)})


@dataclass
class Seen:
    """An observer that keeps reports and the names of metrics."""

    reports: list[Report] = field(default_factory=list)
    metrics: set[str] = field(default_factory=set)

    def stepped(self, version: int, metrics: Metrics, progress: Progress) -> None:
        self.metrics |= metrics.keys()

    def moved(self, progress: Progress) -> None:
        pass

    def report(self, report: Report) -> None:
        self.reports.append(report)


def _lie(line: Line, lie: Lie, over: threading.Event, lies: threading.Event) -> None:
    """Live as an actor that takes tasks and sends lies while `lies` is set, until `over`."""
    session, epoch, held, sent = os.urandom(8), 0, 0, 0
    said = Hello(PROTOCOL, "liar", "", 1, ())
    at, waiting = float("-inf"), list[Assign]()
    while not over.is_set():
        line.wait(0.02)
        if time.monotonic() - at > 0.2:
            at = time.monotonic()
            line.say(Envelope(session, epoch, Beat(0) if epoch else said))
        for arrival in line.drain():
            match arrival.envelope:
                case Envelope(_, its, Welcome()):
                    epoch = its
                case Envelope(_, _, Weights(version)):
                    held = version
                    line.say(Envelope(session, epoch, Have(version)))
                case Envelope(_, _, Assign() as assign):
                    waiting.append(assign)
        while waiting and lies.is_set():
            task, attempt = (assign := waiting.pop(0)).task, assign.attempt
            work = Contribute(task, attempt, max(held, task[0]), 2.0, LAYOUT.digest, False, {}, {}, 0.0, 0.0)
            message, bundle = lie(work, sent)
            sent += 1
            line.say(Envelope(session, epoch, message), bundle.data)
        line.flush()


def _flood(line: Line, over: threading.Event, lies: threading.Event) -> None:
    """Send frames of 400 Hellos, each of another session, as fast as they are taken, while `lies` is set, until `over`. The
    frames are made before, because a liar's own work must not cost the honest actors of this process their time."""
    hello = Hello(PROTOCOL, "liar", "", 1, ())
    frames = [b"".join(encode(Envelope(os.urandom(8), 0, hello)) for _ in range(400)) for _ in range(100)]
    for frame in itertools.cycle(frames):
        while not (lies.wait(0.02) or over.is_set()):
            pass
        if over.is_set():
            return
        line._send(frame, None)
        list(line.drain())
        over.wait(0.03)


@contextmanager
def _coordinator(folder: Path) -> Iterator[tuple[Hub, KeyFolder, Seen, Callable[[], BaseException | None]]]:
    """Yields a coordinator's wire, keys and reports, and a function that ends it and returns what it raised."""
    keys = KeyFolder(folder / "keys")
    for name in ("hub", "honest", "liar"):
        keys.new(name)
    for name in ("honest", "liar"):
        keys.allow(keys.public(name), name)
    hub = Hub("tcp://127.0.0.1:*", server_keys(keys, "hub"))
    over, seen, raised = threading.Event(), Seen(), list[BaseException]()
    aggregator = FedBuffServer(Bundle.zeros(LAYOUT), shares=BATCH)
    learner = LearnerThread(aggregator, Inspector(factor=100.0), time.monotonic, wake=hub.wake)
    core = Core(Stream(BATCH, 1_000), Goal(), Bounds(), now=time.monotonic())
    server = Server(
        core,
        hub,
        learner,
        seen,
        run="liars",
        host=host_id(),
        welcome=pack_welcome(Terms({}, LAYOUT)),
        layouts=[LAYOUT],
        clock=time.monotonic,
        outside=Outside(lambda: "over" if over.is_set() else ""),
        local=(),
    )

    def turn() -> None:
        try:
            server.run()
        except BaseException as error:  # noqa: BLE001  the case tells it
            raised.append(error)

    thread = threading.Thread(target=turn, name="coordinator", daemon=True)
    thread.start()

    def end() -> BaseException | None:
        over.set()
        hub.wake()
        thread.join(JOINING)
        return raised[0] if raised else None

    try:
        yield hub, keys, seen, end
    finally:
        end()
        hub.close()


def beside(liar: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Returns figures of honest work beside this liar. rate: honest tasks a second while it lies, as a share of those while it
    is quiet. seconds: of each of the two, in TURNS turns.
    refused: honest contributions refused. names: names of metrics that the run shows. raised: what ended the coordinator."""
    done: list[float] = []
    told, over, lies = threading.Event(), threading.Event(), threading.Event()
    with _coordinator(folder) as (hub, keys, seen, end):
        honest = [
            Actor(
                hub.address,
                lambda workload: Pacer(done),
                name=f"honest-{number}",
                session=os.urandom(8),
                clock=time.monotonic,
                say=lambda text: None,
                interrupted=lambda: "over" if told.is_set() else "",
                keys=client_keys(keys, "honest", "hub"),
            )
            for number in range(HONEST)
        ]
        threads = [threading.Thread(target=actor.live, daemon=True) for actor in honest]
        for thread in threads:
            thread.start()
        began = time.monotonic()
        while len(done) < 10 * HONEST and time.monotonic() - began < JOINING:
            over.wait(0.01)
        line = Line(hub.address, client_keys(keys, "liar", "hub"))
        lives = (lambda: _flood(line, over, lies)) if liar == "flood" else (lambda: _lie(line, LIES[liar], over, lies))
        lying = threading.Thread(target=lives, daemon=True)
        lying.start()
        before = during = 0.0
        for _ in range(TURNS):
            before += _rate(done, seconds / TURNS)
            lies.set()
            during += _rate(done, seconds / TURNS)
            lies.clear()
        over.set()
        lying.join(JOINING)
        raised = end()
        told.set()
        for thread in threads:
            thread.join(JOINING)
        line.close()
    refused = sum(one.kind == "refused" and one.text.startswith("honest-") for one in seen.reports)
    kinds = sorted({one.kind for one in seen.reports if one.level == "warning"})
    found = {"rate": during / before if before else 0.0, "refused": refused, "names": len(seen.metrics), "told": kinds}
    return {**found, "raised": "" if raised is None else f"{type(raised).__name__}: {raised}"}


def _rate(done: list[float], seconds: float) -> float:
    """Wait so long. Returns the honest tasks a second meanwhile."""
    first, began = len(done), time.monotonic()
    threading.Event().wait(seconds)
    return (len(done) - first) / (time.monotonic() - began)


def strangers(quick: bool) -> Finding:
    """Tries each liar of LIARS beside honest actors."""
    found: dict[str, dict[str, Any]] = {}
    for liar in LIARS:
        with tempfile.TemporaryDirectory() as folder:
            found[liar] = beside(liar, Path(folder), 2.0 if quick else 10.0)
    refused, slowest = sum(one["refused"] for one in found.values()), min(one["rate"] for one in found.values())
    holds = refused == 0 and slowest >= 0.9 and not any(one["raised"] for one in found.values())
    return Finding(
        figure=slowest,
        unit="share of the honest rate",
        goal=0.9,
        holds=holds,
        asked="beside each liar with a key, honest actors keep at least 90 % of their rate, and none of their work is refused",
        details={"honest_refused": refused, "liars": found},
    )
