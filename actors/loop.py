"""The doing half of an actor: a socket and a clock on one thread, the worker on another.

The one idea: a task that takes an hour never delays a heartbeat, because the thread with the socket does no task.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from shoal.actors.events import (
    Adopt,
    Decoded,
    Done,
    Drop,
    Effect,
    Event,
    Forget,
    Gather,
    Give,
    Heard,
    Leave,
    Note,
    Opened,
    Place,
    Quit,
    Reset,
    Retain,
    Run,
    Say,
    Stow,
    Tick,
)
from shoal.actors.hand import Clock, Hand, Held, Order, Workshop
from shoal.actors.labour import Product
from shoal.actors.lane import Lane
from shoal.actors.session import Session, hello
from shoal.actors.sharing import Shared
from shoal.protocol.changes import Changes
from shoal.protocol.codec import unpack_welcome
from shoal.protocol.door import ClientKeys
from shoal.protocol.errors import ProtocolError
from shoal.protocol.fetching import MOST
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.link import INLINE, Arrival, Line, Part
from shoal.protocol.messages import (
    WHOLE,
    Chunk,
    Contribute,
    Envelope,
    Message,
    Ready,
    TaskName,
    Verdict,
    Want,
    Weights,
    Welcome,
)
from shoal.protocol.pool import Buffers
from shoal.protocol.shared import Bytes, available

TURN = 0.1  # seconds: the longest wait between looks at the clock


@dataclass(slots=True)
class Shelf:
    """Arrays that this life holds: the newest weights, arrays that are coming, and contributions that may be sent again."""

    layout: Layout | None = None
    changes: Changes | None = None
    weights: Held | None = None
    briefs: Mapping[str, Layout] = field(default_factory=dict)
    coming: dict[tuple[int, ...], Bytes] = field(default_factory=dict)  # arrays that come in pieces, and waiting briefs
    workload: Mapping[str, Any] = field(default_factory=dict)
    kept: dict[TaskName, Product] = field(default_factory=dict)
    buffers: Buffers = field(default_factory=Buffers)


class Actor:
    """One life of an actor at one coordinator, until the run is over or the actor is told to stop.

    say: prints a line for a person. interrupted: returns a reason to leave, or ""; called at least every TURN seconds. keys:
    the actor's own and the coordinator's, needed if the coordinator is on another machine.
    """

    def __init__(
        self,
        address: str,
        workshop: Workshop,
        *,
        name: str,
        session: bytes,
        clock: Clock,
        say: Callable[[str], None],
        interrupted: Callable[[], str] = str,
        keys: ClientKeys | None = None,
    ) -> None:
        self.line = Line(address, keys, clock)
        self.lane = Lane(self.line, keys, clock)
        self.clock, self.say, self.interrupted = clock, say, interrupted
        offers = () if available() else ("shm",)
        self.session = Session(session, hello(name, host_id(), os.getpid(), offers), address, clock())
        self.shared = Shared()
        self.shelf = Shelf()
        self.hand = Hand(workshop, clock, self.line.wake, self.shared, self.shelf.buffers)
        self.arrived: Arrival | None = None
        self.left: Leave | None = None

    def live(self) -> Leave:
        """Works until the run is over, the coordinator refuses the actor for good, or `interrupted` gives a reason."""
        self.hand.start()
        try:
            while self.left is None:
                self.line.wait(TURN)
                self._turn()
        finally:
            self.hand.orders.put(None)
            self.lane.close()
            self.line.close(seconds=0.5)
        return self.left

    def _turn(self) -> None:
        for line in (self.line, self.lane):
            for arrival in line.drain():
                self._take(arrival, line is self.lane)
        while self.hand.results:
            self._came(self.hand.results.popleft())
        if reason := self.interrupted():
            self._handle(Quit(reason))
        self._handle(Tick())
        self.lane.flush()
        self.line.flush()

    def _take(self, arrival: Arrival, arrays: bool) -> None:
        if arrival.kind == "opened":
            self._handle(Opened(arrays))
            return
        if arrival.envelope is None:
            said = "dropped a message: " if arrival.kind == "malformed" else ""
            self.say(f"{said}{arrival.fault}")
            return
        if fault := _misfit(arrival.envelope.message, arrival.payload):
            self.say(f"dropped a message: {fault}")
            return
        self.arrived = arrival
        self._handle(Heard(arrival.envelope))
        self.arrived = None

    def _came(self, result: Product | Held | BaseException) -> None:
        if isinstance(result, Product):
            self._made(result)
        elif isinstance(result, BaseException):
            raise result
        elif result is self.shelf.weights:
            self._handle(Decoded())

    def _made(self, product: Product) -> None:
        self._forget(product.message.task)  # the payload of an earlier attempt, if there is one
        message, nbytes = product.message, 0 if product.bundle is None else product.bundle.data.nbytes
        if isinstance(message, Contribute) and not message.slot and nbytes > INLINE:
            message = replace(message, nbytes=nbytes)
        self.shelf.kept[message.task] = product
        self._handle(Done(message, product.clients, nbytes))

    def _handle(self, event: Event) -> None:
        for effect in self.session.handle(event, self.clock()):
            self._do(effect)

    def _do(self, effect: Effect) -> None:
        match effect:
            case Say(envelope):
                self._say(envelope)
            case Gather(what, nbytes):
                self.shelf.coming[what] = self.shelf.buffers.take(nbytes)
            case Stow(what, first):
                self._stow(what, first)
            case Place(what):
                self._place(what)
            case Drop(what):
                self.shelf.coming.pop(what, None)
            case Give():
                self._give(effect)
            case Run() as run if self.shelf.weights is not None:
                self.hand.orders.put(Order(run, self.shelf.weights, self._brief(run), self.shelf.workload))
            case Adopt(version, base):
                self._adopt(version, base)
            case Forget(task):
                self._forget(task)
            case Retain(task):
                self._retain(task)
            case Reset():
                self._reset()
            case Note(text):
                self.say(text)
            case Leave():
                self.left = effect

    def _say(self, envelope: Envelope) -> None:
        match envelope.message:
            case Want() | Ready():
                self.lane.say(envelope)
            case Contribute(slot=(), nbytes=0) as message:
                kept = self.shelf.kept[message.task].bundle
                self.line.say(envelope, None if kept is None else kept.data)
            case _:
                self.line.say(envelope)

    def _stow(self, what: tuple[int, ...], first: int) -> None:
        _, payload = self._heard()
        if what in self.shelf.coming and payload is not None:
            self.shelf.coming[what][first : first + len(payload)] = payload

    def _place(self, what: tuple[int, ...]) -> None:
        _, payload = self._heard()
        if payload is None:
            raise ProtocolError(f"the Assign of task {what[:2]} announced a brief as its payload, and came without a payload")
        self.shelf.coming[what] = np.frombuffer(payload, np.uint8)

    def _brief(self, run: Run) -> Bundle | None:
        """The brief of a task, taken from the shelf; None if the task has none."""
        if not run.brief:
            return None
        if run.brief not in self.shelf.briefs:
            raise ProtocolError(f"the coordinator sent a brief of layout {run.brief[:16]!a}, which is not in its Welcome")
        return Bundle(self.shelf.briefs[run.brief], self.shelf.coming.pop((run.task.version, run.task.index, run.attempt)))

    def _give(self, asked: Give) -> None:
        product = self.shelf.kept.get(asked.task)
        bundle = product.bundle if product and product.message.attempt == asked.attempt else None
        if bundle is not None and 0 <= asked.first <= asked.last <= min(bundle.data.nbytes, asked.first + MOST):
            chunk = Chunk((*asked.task, asked.attempt), asked.first, asked.last)
            part = Part(bundle.data, asked.first, asked.last) if asked.last > asked.first else None
            self.lane.say(Envelope(self.session.session, self.session.epoch, chunk), part)

    def _forget(self, task: TaskName) -> None:
        kept = self.shelf.kept.pop(task, None)
        if kept is None or not isinstance(kept.message, Contribute) or not kept.message.slot:
            return
        self.shared.give_back(kept.message.slot)
        verdict = self.arrived.envelope.message if self.arrived and self.arrived.envelope else None
        if isinstance(verdict, Verdict) and verdict.verdict == "refused" and "shared memory" in verdict.reason:
            self.shared.refused = verdict.reason

    def _retain(self, task: TaskName) -> None:
        kept = self.shelf.kept.get(task)
        if kept and isinstance(kept.message, Contribute) and kept.message.slot:
            self.shared.give_back(kept.message.slot)
            self.shelf.kept[task] = replace(kept, message=replace(kept.message, slot=()))

    def _reset(self) -> None:
        welcome, payload = self._heard()
        if not isinstance(welcome, Welcome) or payload is None:
            raise ProtocolError("the coordinator sent a Welcome without a payload, which is to hold workload and layout")
        terms = unpack_welcome(payload)
        self.shelf.workload, self.shelf.layout = terms.workload, terms.layout
        self.shelf.changes = Changes(terms.coding, terms.layout) if terms.coding else None
        self.shelf.briefs = {layout.digest: layout for layout in terms.briefs}
        self.shelf.weights = self.hand.newest = None
        self.hand.retains = welcome.retain > 0
        self.shared.join(welcome.shares)

    def _adopt(self, version: int, base: int) -> None:
        message, payload = self._heard()
        layout, weights = self.shelf.layout, self.shelf.weights
        gathered = self.shelf.coming.pop((version,) if base == WHOLE else (version, base), None)
        if layout is None:
            raise ProtocolError("the coordinator sent Weights before its Welcome")
        came = gathered if gathered is not None or payload is None else np.frombuffer(payload, np.uint8)
        if isinstance(message, Weights) and message.slot:
            weights = Held(self.shared.weights(layout, message.slot))
        elif came is not None:
            weights = Held(Bundle(layout, came)) if base == WHOLE else self._changed(came)
        elif base == WHOLE or weights is None:
            raise ProtocolError("the coordinator sent Weights without their bytes")
        self.shelf.weights = self.hand.newest = weights
        if base != WHOLE:
            self.hand.orders.put(weights)

    def _changed(self, told: Bytes) -> Held:
        """The weights that are here plus a change, which the worker's thread adds."""
        if self.shelf.changes is None or self.shelf.weights is None:
            raise ProtocolError("the coordinator sent a change of weights, but this actor has no weights or no codec for it")
        return Held(before=self.shelf.weights, told=told, changes=self.shelf.changes)

    def _heard(self) -> tuple[Message | None, memoryview | None]:
        """The message that is being handled, and its payload."""
        if self.arrived is None or self.arrived.envelope is None:
            return None, None
        return self.arrived.envelope.message, self.arrived.payload


def _misfit(message: Message, payload: memoryview | None) -> str:
    """Why a payload does not fit its message; "" if it fits."""
    if isinstance(message, Chunk) and (0 if payload is None else len(payload)) != message.last - message.first:
        return f"a piece of {message.last - message.first} bytes has {0 if payload is None else len(payload)}"
    return ""


def host_id() -> str:
    """The identity of this machine and its boot. Two processes with the same host_id may share memory."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else socket.gethostname()


def on_signals(flag: threading.Event, numbers: Iterable[int] = (signal.SIGTERM, signal.SIGINT)) -> None:
    """Set `flag` when one of these signals comes, so that the actor leaves in good order and its tasks go to others at once."""
    for number in numbers:
        signal.signal(number, lambda *_: flag.set())
