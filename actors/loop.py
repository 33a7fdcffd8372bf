"""The doing half of an actor: a socket and a clock on one thread, the worker on another.

The one idea: a task that takes an hour never delays a heartbeat, because the thread with the socket does no task.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from shoal.actors import effects, events
from shoal.actors.effects import Effect
from shoal.actors.events import Event
from shoal.actors.hand import Clock, Hand, Held, Order, Workshop
from shoal.actors.labour import Product
from shoal.actors.session import Session, hello
from shoal.actors.sharing import Shared
from shoal.actors.voice import Voice
from shoal.actors.whereabouts import Whereabouts, stack_of
from shoal.protocol import messages
from shoal.protocol.changes import Following, following
from shoal.protocol.codec import Terms, unpack_welcome
from shoal.protocol.door import ClientKeys
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.fetching import MOST
from shoal.protocol.layout import Bundle, Bytes, Layout, run_of
from shoal.protocol.link import INLINE, Arrival, Line, Part
from shoal.protocol.memory import claim
from shoal.protocol.messages import WHOLE, Chunk, Contribute, Envelope, Message, TaskName
from shoal.protocol.parent import of_this_process
from shoal.protocol.pool import Buffers
from shoal.protocol.shared import available
from shoal.protocol.work import Has

TURN = 0.1  # seconds: the longest wait between looks at the clock


class Actor:
    """A life of an actor at one coordinator, until the run is over or the actor is told to stop.

    say: prints a line for a person. interrupted: returns a reason to leave, or ""; called at least every TURN seconds. keys:
    the actor's own and the coordinator's, needed if the coordinator is on another machine. job, threads: as in Hello. adopted:
    called with (version, weights) of each version that comes to an actor that follows the weights and does no task; the weights
    are valid until it returns; None: the actor does tasks. has: of this machine, for the calls of a pool. trusts: it opens
    pickles of the pool's program. voice: of the worker, if it says or hears anything beside its work. evaluates: as in Hello.
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
        job: str = "",
        threads: int = 0,
        adopted: Callable[[int, Bundle], None] | None = None,
        has: Has | None = None,
        trusts: bool = False,
        voice: Voice | None = None,
        evaluates: bool = False,
    ) -> None:
        self.line = Line(address, keys, clock)
        self.lane: Line | None = None  # for arrays, which so delay no message; opened when first needed: small models need none
        self.clock, self.say, self.interrupted, self.keys = clock, say, interrupted, keys
        offers = ("shm",) * (not available()) + ("code",) * trusts + ("puts",) * (voice is not None)
        greeting = hello(name, host_id(), os.getpid(), offers, job, threads, adopted is not None, has, evaluates)
        self.adopted, self.session = adopted, Session(session, greeting, address, clock())
        self.shared, self.voice = Shared(), voice
        self.buffers = Buffers()
        self.hand = Hand(workshop, clock, self.line.wake, self.shared, self.buffers)
        self.whereabouts = Whereabouts(lambda: stack_of(self.hand.ident), self.session.told)
        self.orders: deque[Order | Held | Mapping[str, Any]] = deque()  # for the worker, at the end of this turn
        self.terms: Terms | None = None
        self.changes: Following | None = None
        self.weights: Held | None = None  # the newest
        self.coming: dict[tuple[int, ...], Bytes] = {}  # arrays that come in pieces, and waiting briefs
        self.kept: dict[TaskName, Product] = {}  # contributions that may be sent again
        self.heard: tuple[Message | None, memoryview | None] = None, None  # the message being handled, and its payload
        self.left: effects.Leave | None = None

    def live(self) -> effects.Leave:
        """Works until the run is over, the coordinator refuses the actor for good, or `interrupted` gives a reason."""
        self.hand.start()
        try:
            while self.left is None:
                self.line.wait(TURN)
                self._turn()
        finally:
            self.hand.end()
            if self.lane:
                self.lane.close()
            self.line.close(seconds=0.5)
        return self.left

    def _turn(self) -> None:
        for arrival in self.line.drain():
            self._take(arrival, arrays=False)
        for arrival in self.lane.drain() if self.lane else ():
            self._take(arrival, arrays=True)
        while self.hand.results:
            self._came(self.hand.results.popleft())
        if reason := self.interrupted():
            self._handle(events.Quit(reason))
        if (now := self.clock()) >= self.session.look_at:
            self.session.told = self.voice.told if self.voice else self.whereabouts.look(self.session.at, now)
            self._handle(events.Tick())
        if self.lane:
            self.lane.flush()
        self.line.flush()
        if self.orders:  # last: work may end this process, and the coordinator then knows that the weights had come
            orders, self.orders = self.orders, deque()
            self.hand.orders.put(orders)

    def _take(self, arrival: Arrival, arrays: bool) -> None:
        if arrival.kind == "opened":
            self._handle(events.Opened(arrays))
            return
        if arrival.envelope is None:
            said = "dropped a message: " if arrival.kind == "malformed" else ""
            self.say(f"{said}{arrival.fault}")
            return
        if fault := _misfit(arrival.envelope.message, arrival.payload):
            self.say(f"dropped a message: {fault}")
            return
        self.heard = arrival.envelope.message, arrival.payload
        self._handle(events.Heard(arrival.envelope))
        self.heard = None, None

    def _came(self, result: Product | Held | BaseException) -> None:
        if isinstance(result, Product):
            self._made(result)
        elif isinstance(result, BaseException):
            self._handle(events.Quit(f"cannot work: {result}"))
            self.line.flush()
            raise result
        elif result is self.weights:
            if self.adopted and result.whole:
                self.adopted(self.session.held, result.whole)
            self._handle(events.Decoded())

    def _made(self, product: Product) -> None:
        self._forget(product.message.task)  # the payload of an earlier attempt, if there is one
        message, nbytes = product.message, 0 if product.bundle is None else product.bundle.data.nbytes
        if isinstance(message, Contribute) and not message.slot and nbytes > INLINE:
            message = replace(message, nbytes=nbytes)
        self.kept[message.task] = product
        self._handle(events.Done(message, product.clients, nbytes))

    def _handle(self, event: Event) -> None:
        for effect in self.session.handle(event, self.clock()):
            self._do(effect)

    def _do(self, effect: Effect) -> None:
        match effect:
            case effects.Say(envelope):
                self._say(envelope)
            case effects.Stow():
                self._stow(effect)
            case effects.Drop(what):
                self.coming.pop(what, None)
            case effects.Give():
                self._give(effect)
            case effects.Run() as run if self.terms and self.weights:
                self.orders.append(Order(run, self.weights, self._brief(run, self.terms), self.terms.workload))
            case effects.Adopt(version, base):
                self._adopt(version, base)
            case effects.Flag(calls):
                if self.voice:
                    self.voice.flag(calls)
            case effects.Forget(task):
                self._forget(task)
            case effects.Retain(task):
                self._retain(task)
            case effects.Reset():
                self._reset()
            case effects.Note(text):
                self.say(text)
            case effects.Leave():
                self.left = effect

    def _say(self, envelope: Envelope) -> None:
        match envelope.message:
            case messages.Want() | messages.Ready():
                self._say_aside(envelope)
            case Contribute(slot=(), nbytes=0) as message:
                kept = self.kept[message.task].bundle
                self.line.say(envelope, None if kept is None else kept.data)
            case _:
                self.line.say(envelope)

    def _say_aside(self, envelope: Envelope, part: Part | None = None) -> None:
        if self.lane is None:
            self.lane = Line(self.line.address, self.keys, self.clock, self.line)
        self.lane.say(envelope, part)

    def _stow(self, stow: effects.Stow) -> None:
        _, payload = self.heard
        if payload is None:
            raise ProtocolError(f"the Assign of task {stow.what[:2]} announced a brief as payload, and came without a payload")
        if not stow.nbytes:
            self.coming[stow.what] = np.frombuffer(payload, np.uint8)
            return
        if stow.what not in self.coming:
            if not self.buffers.has(stow.nbytes):
                self._claim("what the coordinator sends", stow.nbytes)
            self.coming[stow.what] = self.buffers.take(stow.nbytes)
        self.coming[stow.what][stow.first : stow.first + len(payload)] = payload

    def _claim(self, what: str, nbytes: int) -> None:
        """Ends this life if memory that the coordinator asks for cannot be had here. Raises UserError."""
        try:
            claim(what, nbytes)
        except UserError as wrong:
            self._came(wrong)

    def _brief(self, run: effects.Run, terms: Terms) -> Bundle | None:
        """The brief of a task, taken from what came; None if the task has none."""
        if not run.brief:
            return None
        layout = next((one for one in terms.briefs if one.digest == run.brief), None)
        if layout is None and (nbytes := run_of(run.brief)) is not None:
            layout = Layout.run(nbytes)
        if layout is None:
            raise ProtocolError(f"the coordinator sent a brief of layout {run.brief[:16]!a}, which is not in its Welcome")
        return Bundle(layout, self.coming.pop((run.task.version, run.task.index, run.attempt)))

    def _give(self, asked: effects.Give) -> None:
        product = self.kept.get(asked.task)
        bundle = product.bundle if product and product.message.attempt == asked.attempt else None
        if bundle is not None and 0 <= asked.first <= asked.last <= min(bundle.data.nbytes, asked.first + MOST):
            chunk = Chunk((*asked.task, asked.attempt), asked.first, asked.last)
            part = Part(bundle.data, asked.first, asked.last) if asked.last > asked.first else None
            self._say_aside(Envelope(self.session.session, self.session.epoch, chunk), part)

    def _forget(self, task: TaskName) -> None:
        kept = self.kept.pop(task, None)
        if kept is None or not isinstance(kept.message, Contribute) or not kept.message.slot:
            return
        self.shared.give_back(kept.message.slot)
        verdict, _ = self.heard
        if isinstance(verdict, messages.Verdict) and verdict.verdict == "refused" and "shared memory" in verdict.reason:
            self.shared.refused = verdict.reason

    def _retain(self, task: TaskName) -> None:
        kept = self.kept.get(task)
        if kept and isinstance(kept.message, Contribute) and kept.message.slot:
            self.shared.give_back(kept.message.slot)
            self.kept[task] = replace(kept, message=replace(kept.message, slot=()))

    def _reset(self) -> None:
        welcome, payload = self.heard
        if not isinstance(welcome, messages.Welcome) or payload is None:
            raise ProtocolError("the coordinator sent a Welcome without a payload, which is to hold workload and layout")
        before, terms = self.terms, unpack_welcome(payload)
        self.terms = terms
        known = before is not None and before.layout.digest == terms.layout.digest  # it is here, or its buffers are
        if not (welcome.shares or known):  # shared weights lie in memory that the coordinator has already
            self._claim("the coordinator's model", terms.layout.nbytes + max((one.nbytes for one in terms.briefs), default=0))
        self.changes = following(terms.coding, terms.layout) if terms.coding else None
        self.weights = self.hand.newest = None
        self.hand.retains = welcome.retain > 0
        self.shared.join(welcome.shares)
        self.orders.append(terms.workload)

    def _adopt(self, version: int, base: int) -> None:
        message, payload = self.heard
        weights = self.weights
        gathered = self.coming.pop((version,) if base == WHOLE else (version, base), None)
        if self.terms is None:
            raise ProtocolError("the coordinator sent Weights before its Welcome")
        came = gathered if gathered is not None or payload is None else np.frombuffer(payload, np.uint8)
        if isinstance(message, messages.Weights) and message.slot:
            weights = Held(self.shared.weights(self.terms.layout, message.slot))
        elif came is not None:
            weights = Held(Bundle(self.terms.layout, came)) if base == WHOLE else self._changed(came)
        elif base == WHOLE or weights is None:
            raise ProtocolError("the coordinator sent Weights without their bytes")
        self.weights = self.hand.newest = weights
        if base != WHOLE:
            self.orders.append(weights)
        elif self.adopted and weights.whole:
            self.adopted(version, weights.whole)

    def _changed(self, told: Bytes) -> Held:
        """The weights that are here plus a change, which the worker's thread adds."""
        if self.changes is None or self.weights is None:
            raise ProtocolError("the coordinator sent a change of weights, but this actor has no weights or no codec for it")
        return Held(before=self.weights, told=told, changes=self.changes)


def _misfit(message: Message, payload: memoryview | None) -> str:
    """Return why a payload does not fit its message; "" if it fits."""
    if isinstance(message, Chunk) and (0 if payload is None else len(payload)) != message.last - message.first:
        return f"a piece of {message.last - message.first} bytes has {0 if payload is None else len(payload)}"
    return ""


def host_id() -> str:
    """The identity of this machine and its boot. Two processes with the same host_id may share memory."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else socket.gethostname()


def on_signals(flag: threading.Event, numbers: Iterable[int] = (signal.SIGTERM, signal.SIGINT)) -> None:
    """Set `flag` when one of these signals comes, so that the actor leaves in good order and its tasks go to others at once. A
    SIGHUP that is ignored, as by nohup, stays so."""
    for number in numbers:
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue
        signal.signal(number, of_this_process(lambda *_: flag.set()))
