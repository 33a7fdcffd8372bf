"""Cost of 10,000 connected actors that are idle, and seconds until a message has reached all of them.

The one idea: the coordinator is the real one, and the crowd is many actors' sessions in a few processes, because 10,000
processes do not fit on a small machine.
"""

from __future__ import annotations

import os
import resource
import select
import socket
import time
from collections.abc import Callable
from typing import Any

import zmq

from shoal.actors.effects import Run, Say
from shoal.actors.events import Done, Event, Heard, Tick
from shoal.actors.session import Session, hello
from shoal.benchmarks.case import Finding
from shoal.benchmarks.control import Silent
from shoal.benchmarks.floors import FORK, others
from shoal.benchmarks.jobs import Still, vector
from shoal.benchmarks.machine import resident
from shoal.coordinator.checks import Inspector
from shoal.coordinator.deciding.bounds import Bounds, Goal
from shoal.coordinator.deciding.core import Core
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.coordinator.deciding.recovered import Recovered
from shoal.coordinator.learner import Learner
from shoal.coordinator.server import Server
from shoal.protocol.codec import Terms, encode, pack_welcome
from shoal.protocol.link import Hub, read
from shoal.protocol.messages import Contribute

ACTORS = 10_000
FEWER = 2_000  # actors of a quick run
PROCESSES = 4
FLOATS = 25_000  # of the weights: 100 KB
IDLE = 4.0  # seconds for which the idle coordinator is measured
PATIENCE = 60.0  # seconds after which the case gives up


def connections(quick: bool) -> Finding:
    """Measures memory for each actor, seconds until all have joined, CPU of an idle coordinator, seconds of one broadcast of
    100 KB, and seconds until all are back after a restart.
    """
    actors = fitting(FEWER if quick else ACTORS)
    step = FORK.Semaphore(0)
    address = f"tcp://127.0.0.1:{free_port()}"  # chosen before the fork: the crowd must not inherit the coordinator's sockets
    with others(PROCESSES, lambda number: Crowd(address, number, actors // PROCESSES, step).live()):
        house, before = House(address, 1), resident()
        up = house.until(lambda: house.here >= actors, "all up")
        house.until(house.all_have, "weights at all")
        each = (resident() - before) / actors
        house.turns(1.0)
        cpu = time.process_time()
        house.turns(IDLE)
        idle = (time.process_time() - cpu) / IDLE
        step.release()
        broadcast = house.until(house.all_have_the_next, "the next weights at all")
        house.hub.close()
        house = House(address, 2)
        back = house.until(lambda: house.here >= actors, "all back")
        house.hub.close()
    found = {"bytes_each": each, "all_up_s": up, "idle_cores": idle, "broadcast_s": broadcast, "all_back_s": back}
    return Finding(
        figure=each / 1e3,
        unit=f"KB each of {actors:,} connected actors",
        goal=30.0,
        holds=None
        if quick
        else actors == ACTORS and each <= 30e3 and up <= 5 and idle <= 0.1 and broadcast <= 2 and back <= 10,
        asked="10,000 at most 30 KB each; all up in 5 s; idle 0.1 core; 100 KB to all in 2 s; all back 10 s after a restart",
        details=found,
    )


def fitting(actors: int) -> int:
    """Returns `actors`, or as many as this process may have open files for."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return min(actors, (most - 200) // PROCESSES * PROCESSES)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class House:
    """A coordinator whose rounds take one contribution, which the crowd sends when the case releases `step`."""

    def __init__(self, address: str, epoch: int) -> None:
        self.hub = Hub(address)
        core = Core(Rounds(1), Goal(), Bounds(attempts=1_000_000), Recovered(epoch=epoch - 1), time.monotonic())
        self.server = Server(
            core,
            self.hub,
            Learner(Still(FLOATS), Inspector(), time.monotonic),
            Silent(),
            run="connections",
            host="elsewhere",
            welcome=pack_welcome(Terms({}, vector(FLOATS))),
            layouts=[vector(FLOATS)],
            clock=time.monotonic,
        )

    @property
    def here(self) -> int:
        return len(self.server.core.facts.roster)

    def all_have(self) -> bool:
        actors = self.server.core.facts.roster.actors.values()
        return all(actor.sent >= self.server.core.facts.version and not actor.under_way for actor in actors)

    def all_have_the_next(self) -> bool:
        return self.server.core.facts.version > 0 and self.all_have()

    def until(self, there: Callable[[], bool], what: str) -> float:
        """Runs turns until `there()` is true and returns the seconds. Raises TimeoutError after PATIENCE seconds."""
        began = time.monotonic()
        while not there():
            self.turns(0.0)
            if time.monotonic() - began > PATIENCE:
                raise TimeoutError(f"{what}: not after {PATIENCE:g} s; {self.here} actors are here")
        return time.monotonic() - began

    def turns(self, seconds: float) -> None:
        """Runs turns for `seconds`, at least one turn."""
        began = time.monotonic()
        while True:
            self.hub.wait(0.05)
            self.server.turn()
            if time.monotonic() - began >= seconds:
                return


class Crowd:
    """Many actors' sessions and sockets in one process. step: a semaphore; one contribution is sent for each release."""

    def __init__(self, address: str, number: int, actors: int, step: Any) -> None:
        self.sockets = zmq.Context()
        self.sockets.set(zmq.MAX_SOCKETS, actors + 10)
        self.step, self.poll = step, select.epoll()
        self.payload = bytes(4 * FLOATS)
        self.due: list[tuple[Member, Run]] = []
        self.members = [Member(self, f"actor-{number}-{at}", address) for at in range(actors)]
        self.by_number = {int(member.socket.FD): member for member in self.members}

    def live(self) -> None:
        for descriptor in self.by_number:
            self.poll.register(descriptor, select.EPOLLIN | select.EPOLLET)
        ticked = 0.0
        while True:
            for descriptor, _ in self.poll.poll(0.02):
                self.by_number[descriptor].drain()
            if self.due and self.step.acquire(block=False):
                self.due.pop(0)[0].contribute()
            if time.monotonic() - ticked > 0.1:
                ticked = time.monotonic()
                for member in self.members:
                    member.handle(Tick())
                    member.drain()


class Member:
    """An actor: the session that every actor has, over its own socket."""

    def __init__(self, crowd: Crowd, name: str, address: str) -> None:
        self.crowd = crowd
        self.socket = crowd.sockets.socket(zmq.DEALER)
        for option, value in ((zmq.LINGER, 0), (zmq.RECONNECT_IVL, 100), (zmq.RECONNECT_IVL_MAX, 5_000)):
            self.socket.setsockopt(option, value)
        self.socket.connect(address)
        self.session = Session(os.urandom(8), hello(name, "crowd", 0, ()), address, time.monotonic())
        self.run: Run | None = None

    def drain(self) -> None:
        while int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            for arrival in read(b"", "", [frame.buffer for frame in self.socket.recv_multipart(copy=False)]):
                if arrival.envelope is not None:
                    self.handle(Heard(arrival.envelope))

    def handle(self, event: Event) -> None:
        for effect in self.session.handle(event, time.monotonic()):
            match effect:
                case Say(envelope):
                    payload = [self.crowd.payload] if isinstance(envelope.message, Contribute) else []
                    self.socket.send_multipart([encode(envelope), *payload])
                case Run():
                    self.run = effect
                    self.crowd.due.append((self, effect))

    def contribute(self) -> None:
        if self.run is not None:
            name = (self.run.task.version, self.run.task.index)
            layout = vector(FLOATS).digest
            self.handle(Done(Contribute(name, self.run.attempt, self.run.made_from, 1.0, layout, False, {}, {}, 0.0, 0.0)))
