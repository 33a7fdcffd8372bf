"""A run in virtual time: every task is truly done, and lasts for as long as its client's device would take.

The one idea: a virtual run differs from the plain loop in its wire and its clock alone. The wire keeps the results of tasks
in a queue by the time at which they are due, and winds the clock to the next of them when nothing else is left to do. Core,
plan, sessions, worker and learner are those of any run, so updates have the order of a wall-clock run of the same devices.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from shoal.actors import Worker, close
from shoal.actors.effects import Adopt, Drop, Forget, Reset, Run, Say, Stow
from shoal.actors.events import Decoded, Done, Event, Heard, Tick
from shoal.actors.labour import Product, perform
from shoal.actors.session import Session, hello
from shoal.coordinator.deciding.facts import Facts
from shoal.coordinator.deciding.plans import wakes
from shoal.coordinator.deciding.plans.attendance import Attendance
from shoal.envs.devices import Devices, drops, examples_of
from shoal.protocol import draws
from shoal.protocol.codec import unpack_welcome
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.link import NEAR, Arrival, Payload
from shoal.protocol.messages import AWAY, WHOLE, Cancel, Contribute, Envelope, Failed, TaskName

HAIR = 1e-6  # seconds after its end at which a lease is looked at: it is late when more than its time has passed


class VirtualClock:
    """A clock that the wire winds. Called, it gives the seconds of virtual time since the run began, over all its lives."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds

    def wind(self, to: float) -> None:
        self.seconds = max(self.seconds, to)


@dataclass(frozen=True)
class Pace:
    """The pace of devices, which decides how long a task lasts.

    devices: client -> its device. attendance: the times at which clients are there. passes: examples of a client -> examples
    that a training task passes over. seed: of the draws of drop-outs.
    """

    devices: Devices
    attendance: Attendance
    passes: Callable[[float], float]
    seed: int


@dataclass(order=True)
class Due:
    """A result that is on its way. at: the time when it is there. number: of the task, in the order in which tasks began, which
    decides between results of one time. over: the task was taken back."""

    at: float
    number: int
    client: int = field(compare=False)
    seat: Seat = field(compare=False)
    product: Product = field(compare=False)
    over: bool = field(default=False, compare=False)


class Seat:
    """One place for a client at work: the shell of one session."""

    def __init__(self, number: int, now: float) -> None:
        self.peer = f"seat {number}".encode()
        name = f"seat-{number}"
        self.session = Session(b"v%07d" % number, hello(name, "here", 0, ()), "here", now)
        self.weights: Bundle | None = None
        self.layout: Layout | None = None
        self.briefs: dict[str, Layout] = {}
        self.placed: dict[tuple[int, ...], Payload] = {}
        self.kept: dict[TaskName, Bundle] = {}
        self.doing: dict[TaskName, Due] = {}


class VirtualWire:
    """A wire with `seats` actors at its other end, of which each does one task at a time, all in this thread.

    clock: the run's. pace: what decides how long tasks last. looks: () -> the next time at which the core is to be looked at;
    inf: none; its maker sets it. Raises UserError from `wait` if nothing is left that could ever happen.
    """

    inline = NEAR

    def __init__(self, seats: int, workshop: Callable[[Mapping[str, Any]], Worker], clock: VirtualClock, pace: Pace) -> None:
        self.address = "here"
        self.looks: Callable[[], float] = lambda: math.inf
        self._workshop, self._clock, self._pace = workshop, clock, pace
        self._seats = {seat.peer: seat for seat in (Seat(number, clock()) for number in range(seats))}
        self._inbox: deque[tuple[bytes, Envelope, Payload | None]] = deque()
        self._outbox: deque[Arrival] = deque()
        self._due: list[Due] = []
        self._begun = 0  # tasks
        self._worker: Worker | None = None
        self._workload: Mapping[str, Any] = {}
        self._greeted = False

    def say(self, peer: bytes, envelope: Envelope, payload: Payload | None = None) -> str:
        self._inbox.append((peer, envelope, payload))
        return ""

    def flush(self) -> list[tuple[bytes, str]]:
        return []

    def silent(self, peer: bytes) -> float | None:
        return None

    def drain(self) -> Iterator[Arrival]:
        while self._outbox:
            yield self._outbox.popleft()

    def wait(self, seconds: float) -> None:
        """Hand on the messages that were sent; if there are none, wind the clock to the next result or look at the plan."""
        if not self._greeted:
            self._greeted = True
            for each in self._seats.values():
                self._handle(each, Tick(), None)
        while self._inbox:
            peer, envelope, payload = self._inbox.popleft()
            if (seat := self._seats.get(peer)) and not seat.session.over:
                self._handle(seat, Heard(envelope), payload)
                if isinstance(envelope.message, Cancel):
                    self._stop(seat, envelope.message.task)
        if not self._outbox:
            self._wind(seconds)

    def close(self) -> None:
        if self._worker is not None:
            close(self._worker)
        self._worker = None

    def _wind(self, seconds: float) -> None:
        while self._due and self._due[0].over:
            heapq.heappop(self._due)
        at, look = self._due[0].at if self._due else math.inf, self.looks()
        if min(at, look) < math.inf:
            self._clock.wind(min(at, look))
        elif all(seat.session.over for seat in self._seats.values()):
            self._clock.wind(self._clock() + seconds)
        else:
            now = self._clock()
            raise UserError(
                f"nothing is left to happen at {now:,.0f} virtual seconds: no client is at work, and none will come"
            )
        if at <= look and at < math.inf:
            due = heapq.heappop(self._due)
            self._tell(due.seat, due.product)

    def _tell(self, seat: Seat, product: Product) -> None:
        seat.doing.pop(product.message.task, None)
        if product.bundle is not None:
            seat.kept[product.message.task] = product.bundle
        if not seat.session.over:
            self._handle(seat, Done(product.message, product.clients), None)

    def _stop(self, seat: Seat, task: TaskName) -> None:
        """End a task that was taken back: a device that is told so stops."""
        if due := seat.doing.get(task):
            due.over = True
            self._tell(seat, _away(due.product.message, due.client, "it was told to stop"))

    def _start(self, seat: Seat, run: Run) -> None:
        assert seat.weights is not None
        if self._worker is None:
            self._worker = self._workshop(self._workload)
        worker, began = self._worker, self._clock()
        name = (run.task.version, run.task.index, run.attempt)
        brief = Bundle.of_buffer(seat.briefs[run.brief], seat.placed.pop(name)) if run.brief else None
        with draws.alone():
            product = perform(lambda: worker, run, seat.weights, 0.0, self._clock, brief)
        product, at = self._timed(product, run, seat.weights.data.nbytes, began)
        due = Due(at, self._begun, run.task.clients[0], seat, product)
        self._begun += 1
        seat.doing[run.task.name] = due
        heapq.heappush(self._due, due)

    def _timed(self, product: Product, run: Run, down: int, now: float) -> tuple[Product, float]:
        """Return the product as its coordinator gets it, and when. A client that is away begins when it comes back; if it goes
        away or drops out before the task is done, the product is a failure, at that time."""
        pace, message, client = self._pace, product.message, run.task.clients[0]
        begin = pace.attendance.comes(client, now)
        if begin == math.inf:
            return _away(message, client, "it does not come back"), now
        if isinstance(message, Failed):
            return product, begin
        device = pace.devices(client)
        examples = examples_of(message.totals, message.weight)
        examples = pace.passes(examples) if run.task.counts else examples
        up = product.bundle.data.nbytes if product.bundle is not None else 0
        took = device.seconds(examples, down, up)
        share = drops(device, pace.seed, run.task.version, run.task.index, run.attempt)
        lost = min(begin + share * took, pace.attendance.goes(client, begin))
        if lost < begin + took:
            return _away(message, client, "it went away before its task was done"), lost
        trained = device.seconds_per_example * examples
        return replace(product, message=replace(message, trained=trained)), begin + took

    def _handle(self, seat: Seat, event: Event, payload: Payload | None) -> None:
        for effect in seat.session.handle(event, self._clock()):
            match effect:
                case Say(envelope):
                    kept = seat.kept.get(envelope.message.task) if isinstance(envelope.message, Contribute) else None
                    self._outbox.append(Arrival(seat.peer, envelope, None if kept is None else kept.data.data))
                case Run():
                    self._start(seat, effect)
                case Adopt(base=base):
                    if payload is not None and seat.layout:
                        seat.weights = Bundle.of_buffer(seat.layout, payload)
                    if base != WHOLE:
                        self._handle(seat, Decoded(), None)
                case Stow(what) if payload is not None:
                    seat.placed[what] = payload
                case Drop(what):
                    seat.placed.pop(what, None)
                case Reset() if payload is not None:
                    terms = unpack_welcome(payload)
                    self._workload, seat.layout = terms.workload, terms.layout
                    seat.briefs = {layout.digest: layout for layout in terms.briefs}
                case Forget(task):
                    seat.kept.pop(task, None)


def _away(message: Contribute | Failed, client: int, why: str) -> Product:
    """Return what is heard of a client that drops out of a task."""
    return Product(Failed(message.task, message.attempt, client, AWAY, f"client {client} dropped out: {why}", ""))


def look_at(facts: Facts, now: float) -> float:
    """Return the next time at which the core may decide otherwise although nothing has happened: the plan's, or that of a lease
    that runs out; inf if there is none."""
    lease = facts.bounds.lease
    ends = (one.since + lease + HAIR for one in facts.ledger.leases.values()) if lease > 0 else iter(())
    return min(wakes(facts.plan, facts.version, now), next((end for end in ends if end > now), math.inf))
