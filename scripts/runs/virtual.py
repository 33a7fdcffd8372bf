"""A run in virtual time: every task is truly done, and lasts for as long as its client's device would take.

The one idea: a virtual run differs from the plain loop in its wire and its clock alone. The wire keeps the results of tasks
in a queue by the time at which they are due, and winds the clock to the next of them when nothing else is left to do. Core,
plan, sessions, worker and learner are those of any run, so updates have the order of a wall-clock run of the same devices.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from shoal.actors import Worker
from shoal.actors.effects import Run
from shoal.actors.events import Done, Tick
from shoal.actors.labour import Product
from shoal.coordinator.deciding.facts import Facts
from shoal.coordinator.deciding.plans import wakes
from shoal.coordinator.deciding.plans.attendance import Attendance
from shoal.envs.devices import Devices, drops, examples_of
from shoal.protocol.errors import UserError
from shoal.protocol.messages import AWAY, Cancel, Contribute, Failed, TaskName
from shoal.runs.seat import NearWire, Seat

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


class VirtualWire(NearWire):
    """A wire with `seats` actors at its other end, of which each does one task at a time, all in this thread.

    clock: the run's. pace: what decides how long tasks last. looks: () -> the next time at which the core is to be looked at;
    inf: none; its maker sets it. Raises UserError from `wait` if nothing is left that could ever happen.
    """

    def __init__(self, seats: int, workshop: Callable[[Mapping[str, Any]], Worker], clock: VirtualClock, pace: Pace) -> None:
        super().__init__(workshop, clock)
        self.looks: Callable[[], float] = lambda: math.inf
        self._wound, self._pace = clock, pace
        made = (self._seated(f"seat-{at}", b"v%07d" % at, f"seat {at}".encode(), self._begin) for at in range(seats))
        self._seats = {seat.peer: seat for seat in made}
        self._doing: dict[tuple[bytes, TaskName], Due] = {}
        self._due: list[Due] = []
        self._begun = 0  # tasks
        self._greeted = False

    def wait(self, seconds: float) -> None:
        """Hand on the messages that were sent; if there are none, wind the clock to the next result or look at the plan."""
        if not self._greeted:
            self._greeted = True
            for each in self._seats.values():
                each.handle(Tick())
        for seat, envelope in self._hear(self._seats):
            if isinstance(envelope.message, Cancel):
                self._stop(seat, envelope.message.task)
        if not self._outbox:
            self._wind(seconds)

    def _wind(self, seconds: float) -> None:
        while self._due and self._due[0].over:
            heapq.heappop(self._due)
        at, look = self._due[0].at if self._due else math.inf, self.looks()
        if min(at, look) < math.inf:
            self._wound.wind(min(at, look))
        elif all(seat.session.over for seat in self._seats.values()):
            self._wound.wind(self._clock() + seconds)
        else:
            now = self._clock()
            raise UserError(
                f"nothing is left to happen at {now:,.0f} virtual seconds: no client is at work, and none will come"
            )
        if at <= look and at < math.inf:
            due = heapq.heappop(self._due)
            self._tell(due.seat, due.product)

    def _tell(self, seat: Seat, product: Product) -> None:
        self._doing.pop((seat.peer, product.message.task), None)
        if product.bundle is not None:
            seat.kept[product.message.task] = product.bundle
        if not seat.session.over:
            seat.handle(Done(product.message, product.clients))

    def _stop(self, seat: Seat, task: TaskName) -> None:
        """End a task that was taken back: a device that is told so stops."""
        if due := self._doing.get((seat.peer, task)):
            due.over = True
            self._tell(seat, _away(due.product.message, due.client, "it was told to stop"))

    def _begin(self, seat: Seat, run: Run) -> None:
        assert seat.weights is not None
        began = self._clock()
        product, at = self._timed(self._done(seat, run), run, seat.weights.data.nbytes, began)
        due = Due(at, self._begun, run.task.clients[0], seat, product)
        self._begun += 1
        self._doing[seat.peer, run.task.name] = due
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


def _away(message: Contribute | Failed, client: int, why: str) -> Product:
    """Return what is heard of a client that drops out of a task."""
    return Product(Failed(message.task, message.attempt, client, AWAY, f"client {client} dropped out: {why}", ""))


def look_at(facts: Facts, now: float) -> float:
    """Return the next time at which the core may decide otherwise although nothing has happened: the plan's, or that of a lease
    that runs out; inf if there is none."""
    lease = facts.bounds.lease
    ends = (one.since + lease + HAIR for one in facts.ledger.leases.values()) if lease > 0 else iter(())
    return min(wakes(facts.plan, facts.version, now), next((end for end in ends if end > now), math.inf))
