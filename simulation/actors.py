"""A simulated actor: the production session, a worker that takes its time, and the shelf of products that must be kept.

The one idea: a product is a number that is used once. Arrays do not matter to the protocol; their owner, and the weights that
they were made from, do.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from shoal.actors.effects import Adopt, Drop, Forget, Give, Leave, Reset, Retain, Run, Say, Stow
from shoal.actors.events import Decoded, Done, Event, Heard, Opened, Quit, Tick
from shoal.actors.session import Session, hello
from shoal.protocol.layout import Bundle
from shoal.protocol.messages import (
    PROTOCOL,
    WHOLE,
    Assign,
    Beat,
    Bye,
    Cancel,
    Chunk,
    Contribute,
    Envelope,
    Failed,
    Have,
    Hello,
    Message,
    Ready,
    TaskName,
    Want,
    Weights,
    Welcome,
)
from shoal.simulation.books import ViolationError
from shoal.simulation.common import RING, Common
from shoal.simulation.disk import LAYOUT, Delta, Handout, Model
from shoal.simulation.wire import Act, Connection, Process

if TYPE_CHECKING:
    from shoal.simulation.world import World

TICK = Tick()
ADDING = 0.3  # seconds that a worker takes at most to add changes
TURN = 0.1  # seconds between looks at the clock
OF_ARRAYS = (Want, Ready)  # messages that go by the line for arrays


@dataclass(frozen=True, slots=True)
class Product:
    """Stands for a contribution's arrays. number: used once, odd if the arrays are not finite. model: the weights that the
    arrays were made from. user: the actor's key; "" if it has none. torn: True if the weights were written anew meanwhile."""

    number: int
    model: Model | None
    clients: tuple[int, ...]
    honest: bool = True
    attempt: int = 0
    handout: Handout | None = None  # the brief that the product was made with
    user: str = ""
    torn: bool = False

    @property
    def bundle(self) -> Bundle:
        return Bundle.of_buffer(LAYOUT, self.number.to_bytes(8, "little"))


Payload: TypeAlias = Product | Model | Delta | Handout
"""Stands for arrays on the wire."""


@dataclass(slots=True, eq=False)
class Source:
    """Where weights come from. token: the shared memory that they lie in (with which coordinator, and what its board calls the
    place). before: the weights that they are to be made of, by adding what changed. torn: memory was written anew too early."""

    token: tuple[Common, tuple[int, ...]] | None = None
    before: Source | None = None
    torn: bool = False

    def look(self) -> None:
        """The worker reads it now."""
        self.torn = self.torn or (self.token is not None and not self.token[0].holds(self.token[1]))

    def add(self) -> None:
        """The worker adds what changed since the last weights that are whole: to memory of its own."""
        whole = self
        while whole.before:
            whole = whole.before
        whole.look()
        self.torn, self.before = self.torn or whole.torn, None


class Lane:
    """An actor's line for arrays. Messages on it are lost while there is no connection; its first connection is told of too."""

    keeps = False

    def __init__(self, life: Life) -> None:
        self.life, self.place, self.user = life, life.place, life.user
        self.connection: Connection | None = None
        self.connected = True
        self.outbox: list[tuple[Envelope, Payload | None]] = []

    @property
    def gone(self) -> bool:
        return self.life.gone

    @property
    def frozen(self) -> bool:
        return self.life.frozen

    @property
    def frozen_at(self) -> float:
        return self.life.frozen_at

    @property
    def locked(self) -> bool:
        return self.life.locked

    def later(self, act: Act, what: Any) -> None:
        self.life.later(act, what)

    def hear(self, envelope: Envelope, payload: Payload | None) -> None:
        self.life.hear(envelope, payload)

    def opened(self) -> None:
        self.life.soon(Opened(arrays=True))


class Life(Process):
    """A life of an actor's process. pace: mean seconds of a task."""

    honest = True
    keeps = True

    def __init__(self, world: World, place: int, pace: float) -> None:
        super().__init__(world.time, world.rng.uniform(0, 1e6), TURN)  # every machine's clock starts elsewhere
        self.world, self.place, self.pace = world, place, pace
        self.user = f"key {place}" if world.setting.keyed else ""
        self.pid = world.pid()
        name, near = f"actor-{place}", world.setting.shares and place % 2 == 0
        evaluates = place in world.setting.evaluators
        said = hello(name, "host" if near else name, self.pid, ("shm",) if near else (), evaluates=evaluates)
        self.session = Session(world.rng.randbytes(8), said, "here", self.clock())
        self.shares = False  # whether the actor shares memory with its coordinator
        self.slots: dict[int, TaskName] = {}  # product number -> task, of the slots that the actor lent
        self.source = Source()  # of the newest weights
        self.nudged = False  # True if the worker has changes to add to the newest weights
        self.connection: Connection | None = None
        self.connected = False  # whether the actor was ever connected
        self.outbox: list[tuple[Envelope, Payload | None]] = []
        self.lane = Lane(self)
        self.weights: Model | None = None
        self.gathered: dict[tuple[int, ...], Payload] = {}
        self.shelf: dict[TaskName, Product] = {}
        self.held = -1
        self.orders: deque[tuple[Run, Product, Source]] = deque()
        self.hangs = False
        self.locked = False  # while it is frozen, its sockets answer: Python computes in one call
        self.epoch = 0
        world.wire.connect(self)
        world.wire.connect(self.lane)

    # Events in

    def opened(self) -> None:
        self.soon(Opened(arrays=False))

    def soon(self, event: Event) -> None:
        """Have the actor take an event of its socket within 1 ms."""
        self.time.at(self.time.now + 0.001 * self.time.random(), self._told, event)

    def _told(self, event: Event) -> None:
        if self.frozen:
            self.later(self._told, event)
        else:
            self.take(event)

    def hear(self, envelope: Envelope, payload: Payload | None) -> None:
        self.take(Heard(envelope), payload)
        self.take(TICK)  # a turn of the loop ends with a look at the clock

    def leave(self) -> None:
        self.take(Quit("told to stop"))

    def die(self) -> None:
        self.gone = True

    def take(self, event: Event, payload: Payload | None = None) -> None:
        """Take an event and carry out its effects, unless this process is over."""
        if self.gone:
            return
        effects = self.session.handle(event, self.time.now + self.offset)
        self.time.events += 1 + len(effects)
        for effect in effects:
            match effect:
                case Say():
                    self.say(effect.envelope)
                case Stow():
                    self._stow(effect, self._heard(event), payload)
                case Drop():
                    self.gathered.pop(effect.what, None)
                case Give():
                    self._give(effect)
                case Adopt():
                    self._adopt(effect, self._heard(event), payload)
                case Run():
                    self._order(effect)
                case Forget():
                    self._take_back(effect.task)
                    self.shelf.pop(effect.task, None)
                case Retain():
                    self._take_back(effect.task)
                case Reset():
                    self._reset(self._heard(event))
                case Leave(failed=failed):
                    self.gone = True
                    if failed:  # its process ends without a Bye
                        self.world.wire.cut(self, math.inf)

    def tick(self) -> None:
        self.take(TICK)

    # Effects out

    def say(self, envelope: Envelope) -> None:
        payload, message = None, envelope.message
        if isinstance(message, Contribute):
            payload = self.shelf.get(message.task)
            if payload is None:
                raise ViolationError(f"actor {self.place} says task {message.task}, whose arrays it has forgotten")
            payload = None if message.nbytes or message.slot or not message.layout else payload
        self.world.wire.up(self.lane if isinstance(message, OF_ARRAYS) else self, envelope, payload)

    def _give(self, asked: Give) -> None:
        product = self.shelf.get(asked.task)
        if product is not None and product.attempt == asked.attempt:
            chunk = Chunk((*asked.task, asked.attempt), asked.first, asked.last)
            self.world.wire.up(self.lane, Envelope(self.session.session, self.session.epoch, chunk), product)

    def _heard(self, event: Event) -> Message | None:
        return event.envelope.message if isinstance(event, Heard) else None

    def _take_back(self, task: TaskName) -> None:
        """Take back the slots that the actor lent for this task: it writes other arrays there."""
        for number in [number for number, its in self.slots.items() if its == task]:
            del self.slots[number], self.world.lent[number]

    def _stow(self, stow: Stow, told: Message | None, payload: Payload | None) -> None:
        what = told.what if isinstance(told, Chunk) else (*told.task, told.attempt) if isinstance(told, Assign) else ()
        if what != stow.what or not isinstance(payload, Handout if len(stow.what) == 3 else Model | Delta):
            raise ViolationError(f"actor {self.place} keeps as {stow.what} what is not that")
        if isinstance(told, Chunk) != (stow.nbytes > 0):
            raise ViolationError(f"actor {self.place} takes a piece of {stow.what} for all of it, or all for a piece")
        self.gathered[stow.what] = payload

    def _reset(self, welcome: Message | None) -> None:
        self.shares = isinstance(welcome, Welcome) and welcome.shares != ()
        if self.session.epoch < self.epoch and not self.world.wire.wild:
            raise ViolationError(f"actor {self.place} went back from epoch {self.epoch} to {self.session.epoch}")
        if self.session.briefs or self.session.lacking or any(len(what) == 3 for what in self.gathered):
            raise ViolationError(f"actor {self.place} has a new place, and briefs of tasks that are others' now")
        self.epoch = self.session.epoch
        self.weights, self.held, self.source = None, -1, Source()

    def _adopt(self, adopt: Adopt, told: Message | None, payload: Payload | None) -> None:
        what = (adopt.version,) if adopt.base == WHOLE else (adopt.version, adopt.base)
        if (gathered := self.gathered.pop(what, None)) is not None:
            payload = gathered
        if payload is None and adopt.base == self.held:
            payload = self.weights
        elif isinstance(payload, Delta):
            self.source = Source(before=self.source)
        else:
            common = self.world.hub and self.world.hub.common
            self.source = Source((common, told.slot)) if common and isinstance(told, Weights) and told.slot else Source()
        if isinstance(payload, Delta) and adopt.base == self.held:
            if payload.since is not self.weights:
                raise ViolationError(f"actor {self.place} adds what changed in other weights than its version {self.held}")
            payload = payload.model
        if not isinstance(payload, Model):
            raise ViolationError(f"actor {self.place} adopts version {adopt.version} without weights")
        if adopt.version <= self.held:
            raise ViolationError(f"actor {self.place} goes from version {self.held} to {adopt.version}")
        self.weights, self.held = payload, adopt.version
        self.nudged = adopt.base != WHOLE
        if self.nudged and not self.orders:
            self.time.at(self.time.now + ADDING * self.time.random(), self._add)

    def _add(self, _: None = None) -> None:
        """The worker has time to add what changed."""
        if self.frozen:
            self.later(self._add, None)
        elif self.nudged:
            self.nudged = False
            self.source.add()
            self.take(Decoded())

    def _order(self, run: Run) -> None:
        """Put a task to the worker, which does one task after the other."""
        if run.made_from < run.task.version or run.made_from != self.held or self.weights is None:
            raise ViolationError(f"actor {self.place} starts task {run.task} from weights {run.made_from}, holding {self.held}")
        task = run.task
        if (task.kind, task.counts, task.words) != self.world.setting.schedule.told(task.version, task.counts):
            raise ViolationError(f"actor {self.place} is told of {task} what the plan did not say")
        handout = self.gathered.pop((task.version, task.index, run.attempt), None) if run.brief else None
        if not isinstance(handout, Handout | None) or (run.brief and handout is None):
            raise ViolationError(f"actor {self.place} starts task {task} without its brief")
        self.orders.append((run, self._product(run.task.clients, run.attempt, handout), self.source))
        if len(self.orders) == 1:
            self._work()

    def _work(self) -> None:
        if self.orders and self.world.setting.deadly in self.orders[0][0].task.clients and not self.world.healed:
            self.time.at(self.time.now, self.world.crash, self)
        elif self.orders and not self.hangs:
            source, adding = self.orders[0][2], ADDING * self.time.random() if self.orders[0][2].before else 0.0
            self.time.at(self.time.now + adding, Source.add, source)
            seconds = self.world.rng.expovariate(1 / self.pace)
            self.time.at(self.time.now + adding + seconds, self._finish, seconds)

    def _product(self, clients: tuple[int, ...], attempt: int = 0, handout: Handout | None = None) -> Product:
        poisoned = self.time.random() < self.world.setting.weather.poisoned and not self.world.healed
        return Product(self.world.number(poisoned), self.weights, clients, True, attempt, handout, self.user)

    def _finish(self, seconds: float) -> None:
        if self.gone:
            return
        if self.frozen:
            self.later(self._finish, seconds)
            return
        run, product, source = self.orders.popleft()
        source.look()
        product = replace(product, torn=source.torn)
        self.time.at(self.time.now, self._add)
        self._work()
        name = (run.task.version, run.task.index)
        if self.time.random() < self.world.setting.weather.raising and not self.world.healed:
            self.take(Done(Failed(name, run.attempt, run.task.clients[0], "training", "ValueError: no", "")))
            return
        self._take_back(name)
        self.shelf[name] = product
        counts, clients = run.task.counts, len(run.task.clients)
        layout, nbytes, digest = ("layout", self.world.setting.work_bytes, "") if counts else ("", 0, "")
        if counts and self.session.retain:
            digest = product.bundle.sha256()
        weight, totals = float(product.number), {"number": (float(product.number), 1.0)}
        room = (nbytes or LAYOUT.nbytes) if counts else 0
        slot: tuple[int, ...] = ()
        if counts and self.shares and len(self.slots) < RING:
            slot, nbytes = (product.number,), 0
            self.slots[product.number], self.world.lent[product.number] = name, product
        made = (name, run.attempt, run.made_from, weight, layout, run.summed, totals)
        self.take(Done(Contribute(*made, {}, 0.0, seconds, slot, nbytes, digest, clients), clients, room))


class Liar(Life):
    """An actor that knows the protocol and the whole run, and makes false claims about its own work and that of others."""

    honest = False

    def __init__(self, world: World, place: int, pace: float) -> None:
        super().__init__(world, place, pace)
        self.poison = world.rng.choice((0.1, 0.5, 1.0))  # share of its products that are not finite

    def say(self, envelope: Envelope) -> None:
        roll = self.time.random()
        message = envelope.message
        if isinstance(message, Contribute) and self._was_accepted(message):
            self.shelf[message.task] = self._product(())  # other arrays under the digest of those that were accepted
        if roll < 0.5:
            super().say(envelope)
            if roll < 0.1 and isinstance(message, Contribute):  # the liar takes its contribution back
                self._tell(replace(envelope, message=Failed(message.task, message.attempt, 0, "training", "no", "")))
        elif isinstance(message, Contribute):
            self._lie(envelope, message)
        elif roll < 0.6:
            self._tell(replace(envelope, message=self._nonsense()))
        else:
            super().say(envelope)
        if self.time.random() < 0.1:
            self._tell(replace(envelope, epoch=self.session.epoch, message=self._claim()))
        if self.time.random() < 0.2 and (piece := self._piece()):
            self._tell(replace(envelope, epoch=self.session.epoch, message=piece))
        if self.user and self.time.random() < 0.3:
            self._steal()

    def _was_accepted(self, message: Contribute) -> bool:
        """Return whether an earlier life of the coordinator accepted this contribution, and knows its digest."""
        waiting = self.session.unjudged.get(message.task)
        return waiting is not None and waiting.onto >= 0 and message.digest != ""

    def _steal(self) -> None:
        """Send a message for the session of another actor, whose key the liar lacks."""
        rng, newest = self.world.rng, self.world.newest()
        session = rng.choice(self.world.lives).session.session
        piece, work = self._piece() or Ready(), self._claim()
        said: tuple[Message, ...] = (Ready(), Want((newest,), 0, 100), Have(newest, newest), work, piece)
        line = rng.choice((self, self.lane))
        self.world.wire.up(line, Envelope(session, self.session.epoch, rng.choice(said)), self._product(()))

    def _tell(self, envelope: Envelope) -> None:
        self.world.wire.up(self, envelope, self._product(()) if self.time.random() < 0.7 else None)

    def _product(self, clients: tuple[int, ...], attempt: int = 0, handout: Handout | None = None) -> Product:
        number = self.world.number(self.time.random() < self.poison)
        return Product(number, self.weights, clients, False, attempt, user=self.user)

    def _lie(self, envelope: Envelope, message: Contribute) -> None:
        """Send a contribution to the liar's own task, with one field wrong."""
        rng = self.world.rng
        newest = self.world.newest()
        wrong = rng.choice(
            (
                replace(message, made_from=rng.choice((-1, newest - 1, newest, newest + 1, 2**40))),
                replace(message, attempt=rng.choice((0, message.attempt - 1, message.attempt + 1))),
                replace(message, weight=rng.choice((float("nan"), float("inf"), 0.0, -1.0))),
                replace(message, steps=rng.choice((-1, 2**53, 2**62))),
                replace(message, totals={"loss": (0.0, rng.choice((-1.0, float("nan"))))}),
                replace(message, summed=not message.summed),
                replace(message, trained=rng.choice((-1.0, float("nan"), float("inf")))),
            )
        )
        self._tell(replace(envelope, message=wrong))

    def _claim(self) -> Message:
        """A claim to have done a task that another actor has, or that is long done."""
        rng = self.world.rng
        task, attempt, version = self.world.audit.anything(rng)
        bounds, digest = self.world.setting.bounds, rng.choice(("", "0" * 64))
        work = Contribute(task, attempt, version, 1.0, "layout", bounds.summed, {}, {}, 0.0, 0.0, (), 0, digest)
        return rng.choice((work, work, Failed(task, attempt, 0, "training", "no", ""), Have(self.world.newest())))

    def _piece(self) -> Chunk | None:
        """A piece of a contribution that the coordinator fetches from some actor; None if it fetches nothing."""
        fetched = self.world.hub.traffic.receiving._fetching.values() if self.world.hub else ()
        asked = [(delivery.what, one) for delivery in fetched if delivery.fetch for one in delivery.fetch._asked]
        return Chunk(asked[0][0], *asked[0][1]) if asked else None

    def _nonsense(self) -> Message:
        rng, risen = self.world.rng, int(100 * self.clock())
        held = rng.choice((-2, 0, 2**40))
        back = Hello(PROTOCOL, "other", "elsewhere", 0, (), rng.choice((0, risen)), self.session.epoch, held)
        wrong: tuple[Message, ...] = (
            Beat(rng.choice((-1, 2**62))),
            Have(rng.choice((-1, 0, 2**40))),
            Weights(3),
            Cancel((0, 0)),
            Hello(PROTOCOL + 256, "other", "elsewhere", 0, ()),
            back,
            back,
            Bye("for now"),
            Want((self.world.newest(),), 0, 2**40),
            Want((), 0, 0),
            Chunk((0, 0, 0), -5, rng.choice((-1, 0, 2**40))),
            Ready(),
        )
        return rng.choice(wrong)
