"""Control messages: their rate, their CPU cost and their round trip.

The one idea: the coordinator's whole loop (socket, codec, core) is compared with a bare socket whose bytes are only cut into
messages and parsed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgpack
import numpy as np

from shoal.aggregators.fedavg import FedAvgServer
from shoal.benchmarks.case import Finding
from shoal.benchmarks.floors import FORK, others, parsed, ping_pong
from shoal.benchmarks.timing import interleaved, quantile
from shoal.coordinator.checks import Inspector
from shoal.coordinator.deciding.bounds import Bounds, Goal
from shoal.coordinator.deciding.core import Core
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.coordinator.learner import Learner
from shoal.coordinator.reports import Progress, Report
from shoal.coordinator.server import Server
from shoal.protocol.codec import Terms, decode, encode, pack_welcome
from shoal.protocol.layout import Bundle
from shoal.protocol.link import Hub, Line
from shoal.protocol.messages import PROTOCOL, Beat, Bye, Contribute, Envelope, Hello, Message, Verdict, Welcome

ACTORS = 8


class Silent:
    """An observer that does nothing."""

    def stepped(self, version: int, metrics: Mapping[str, float], progress: Progress) -> None:
        return

    def moved(self, progress: Progress) -> None:
        return

    def report(self, report: Report) -> None:
        return


class Desk:
    """A coordinator over TCP whose plan waits for a client that never comes, so it only hears and answers messages."""

    def __init__(self, floats: int = 16) -> None:
        weights = Bundle.pack({"w": np.zeros(floats, np.float32)})
        self.hub = Hub("tcp://127.0.0.1:*")
        core = Core(Rounds(1), Goal(), Bounds(patience=60.0, attempts=1_000_000), now=time.monotonic())
        self.server = Server(
            core,
            self.hub,
            Learner(FedAvgServer(weights), Inspector(), time.monotonic),
            Silent(),
            run="control",
            host="elsewhere",
            welcome=pack_welcome(Terms({}, weights.layout)),
            layouts=[weights.layout],
            clock=time.monotonic,
        )

    def turns(self, until: Callable[[int], bool]) -> None:
        """Runs turns until `until(number of actors that are here)` is true."""
        while not until(len(self.server.core.facts.roster)):
            self.hub.wait(0.05)
            self.server.turn()


class Caller:
    """An actor's end of a line that says what the case wants, at any time."""

    def __init__(self, address: str) -> None:
        self.line, self.session, self.epoch = Line(address), os.urandom(8), 0
        self.say(Hello(PROTOCOL, "caller", "here", 0, ()))
        while not self.epoch:
            for envelope in self.hear():
                self.epoch = envelope.epoch if isinstance(envelope.message, Welcome) else self.epoch

    def say(self, message: Message) -> bool:
        return self.line.send(Envelope(self.session, self.epoch, message))

    def hear(self) -> list[Envelope]:
        self.line.wait(1.0)
        return [arrival.envelope for arrival in self.line.drain() if arrival.envelope]

    def stay(self) -> None:
        """Waits until this process is ended. A closed connection would lose the messages that are still on their way."""
        while True:
            self.line.wait(1.0)

    def until(self, kind: type[Any]) -> None:
        while not any(isinstance(envelope.message, kind) for envelope in self.hear()):
            pass


def control(quick: bool) -> Finding:
    """Measures the rate of beats from 8 actors, and the round trip of a contribution whose only answer is a verdict."""
    each, trips = (4_000, 1_000) if quick else (40_000, 5_000)
    message = encode(Envelope(bytes(8), 1, Beat(1_000)))
    costs: list[float] = []

    def shoal() -> float:
        rate, cost = _beats(each)
        costs.append(cost)
        return rate

    ours, bare, barest = interleaved(
        3, shoal, lambda: parsed(message, ACTORS, each, decode), lambda: parsed(message, ACTORS, each, msgpack.unpackb)
    )
    trip, floor = interleaved(3, lambda: _trip(trips), lambda: ping_pong(trips))
    cost = quantile(costs, 0.5)
    return Finding(
        figure=ours,
        unit=f"control messages/s from {ACTORS} actors",
        goal=0.8 * bare,
        floor=bare,
        ratio=ours / bare,
        holds=ours >= 0.8 * bare and cost <= 5e-6 and trip <= 2.5 * floor,
        asked="at least 80 % of bare sockets with the same parser; at most 5 us of CPU each; round trip at most 2.5 of TCP's",
        details={
            "bare_msgpack": barest,
            "cpu_us_each": cost * 1e6,
            "round_trip_us": trip * 1e6,
            "bare_round_trip_us": floor * 1e6,
            "round_trip_ratio": trip / floor,
        },
    )


def _beats(each: int) -> tuple[float, float]:
    """Returns beats a second, and CPU seconds of the coordinator for each beat (all of its threads)."""
    desk, everyone = Desk(), FORK.Event()

    def beat(number: int) -> None:
        caller = Caller(desk.hub.address)
        everyone.wait()
        said = encode(Envelope(caller.session, caller.epoch, Beat(1_000)))
        for _ in range(each):
            caller.line.socket.send(said)  # straight to the socket: the cost of sending is not measured here
        caller.line.socket.send(encode(Envelope(caller.session, caller.epoch, Bye("done"))))
        caller.stay()

    with others(ACTORS, beat):
        desk.turns(lambda here: here == ACTORS)
        everyone.set()
        began, cpu = time.perf_counter(), time.process_time()
        desk.turns(lambda here: here == 0)
        seconds, spent = time.perf_counter() - began, time.process_time() - cpu
    desk.hub.close()
    return ACTORS * each / seconds, spent / (ACTORS * each)


def _trip(times: int) -> float:
    """Returns median seconds from a Contribute to its Verdict; the contribution is for a task that nobody has."""
    desk = Desk()
    found = os.memfd_create("trips")

    def call(number: int) -> None:
        caller, seconds = Caller(desk.hub.address), []
        message = Contribute((0, 99), 1, 0, 1.0, "", False, {}, {}, 0.0, 0.0)
        for _ in range(times):
            began = time.perf_counter()
            caller.say(message)
            caller.until(Verdict)
            seconds.append(time.perf_counter() - began)
        os.write(found, repr(quantile(seconds, 0.5)).encode())
        caller.say(Bye("done"))
        caller.stay()

    with others(1, call):
        desk.turns(lambda here: here == 1)
        desk.turns(lambda here: here == 0)
    desk.hub.close()
    told = float(os.pread(found, 100, 0))
    os.close(found)
    return told
