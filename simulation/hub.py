"""A simulated coordinator's process: the production's traffic, core, learner and recording, and a shell around them.

The one idea: one life is made of the disk's content and of nothing else, exactly as the command line makes a life; and the
shell carries out its deeds as the production's does, with products in place of arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from shoal.coordinator.checks import Inspector
from shoal.coordinator.deciding.core import Core
from shoal.coordinator.deciding.deeds import (
    Ended,
    Greet,
    Happening,
    LetGo,
    Open,
    Opened,
    Ship,
    Store,
    Stored,
)
from shoal.coordinator.deciding.events import (
    Brief,
    Briefed,
    Effect,
    Event,
    Evict,
    Finish,
    Fold,
    Heard,
    Lost,
    Probe,
    Pulse,
    Send,
    Step,
    Stepped,
    Tick,
)
from shoal.coordinator.deciding.receiving import Delivery
from shoal.coordinator.deciding.traffic import Premises, Traffic
from shoal.coordinator.keeping.recording import Recording
from shoal.coordinator.lately import Lately
from shoal.coordinator.learner import Intake, Job, Learner, Make
from shoal.coordinator.sharing import Sharing
from shoal.protocol.layout import ALIGNMENT, Bundle
from shoal.protocol.messages import Chunk, Contribute, Envelope, Ready, Refused, Want, Weights, Welcome
from shoal.protocol.value import value
from shoal.simulation.actors import Product
from shoal.simulation.books import ViolationError
from shoal.simulation.common import Common
from shoal.simulation.disk import LAYOUT, RECENT, Adder, Delta, Handout, Model
from shoal.simulation.wire import Process

if TYPE_CHECKING:
    from shoal.simulation.world import World

TURN = 0.05  # seconds between looks at the clock
TICK = Tick()


class Finite(Inspector):
    """The check of a contribution's numbers: a product with an odd number is not finite."""

    def look(self, bundle: Bundle, message: Contribute, clients: int = 1) -> tuple[str, None]:
        return "not finite" if bundle.data[0] & 1 else "", None


@dataclass(frozen=True, slots=True)
class Stuff:
    """Stands for arrays. what: the weights, changes, brief or product that the arrays are. nbytes: their alleged bytes."""

    what: Any
    nbytes: int


@dataclass(frozen=True, slots=True)
class Changed:
    """Recent changes, in the form that Traffic takes. models: the last RECENT models, by version. nbytes: of any change."""

    lately: Lately
    models: Mapping[int, Model]
    nbytes: int

    def since(self, base: int) -> Stuff | None:
        if (changed := self.lately.since(base)) is None:
            return None
        version = self.lately.version
        if [*changed.view(np.int64)[:: ALIGNMENT // 8]] != list(range(base + 1, version + 1)):
            raise ViolationError(f"what changed from version {base} to {version} is told by {changed}")
        return Stuff(Delta(self.models[base], self.models[version]), self.nbytes)


class Watched(Core):
    """The production's core; the audit sees every effect before the shell carries it out."""

    hub: Hub

    def handle(self, event: Event, now: float) -> list[Effect]:
        effects = super().handle(event, now)
        self.hub.time.events += 1 + len(effects)
        self.hub.audit.saw(event, effects, product(self.hub.traffic.judged))
        return effects


def product(delivery: Delivery | None) -> Product | None:
    """The product of a delivery, from the arrays that came with its message or in one of its pieces; None if none came."""
    arrays = delivery.arrays if delivery else None
    found: Product | None = arrays.what if isinstance(arrays, Stuff) else next(iter(arrays.values()), None) if arrays else None
    return found


@value
class Loaded(Intake):
    """A contribution whose arrays must be there when it is folded in."""

    delivery: Delivery


class Slow(Learner):
    """The production's learner, each of whose jobs takes up to Setting.step or fold seconds, and each sync up to 5 ms."""

    def __init__(self, hub: Hub, adder: Adder, recording: Recording, version: int) -> None:
        self.hub = hub
        self.adder = adder
        self._free_at = 0.0
        self._syncs = False
        plain: Any = adder
        finite = Finite()
        super().__init__(plain, finite, hub.clock, version=version, recording=recording, briefs=[LAYOUT])

    def put(self, jobs: Sequence[Job]) -> None:
        time, setting = self.hub.time, self.hub.world.setting
        for job in jobs:
            self._free_at = (
                max(self._free_at, time.now) + (setting.step if isinstance(job, Make) else setting.fold) * time.random()
            )
            time.at(self._free_at, self._due, job)
            if isinstance(job, Make):
                self._free_at += setting.step  # the time of a snapshot
                time.at(self._free_at, self._rest, job.step)

    def _take(self, intake: Intake) -> None:
        assert isinstance(intake, Loaded)
        delivery = intake.delivery
        made = product(delivery)
        if made is None:
            raise ViolationError(f"task {delivery.task} is folded in when its arrays were let go of")
        if delivery.message.slot and made.honest and made.number not in self.hub.world.lent:
            raise ViolationError(f"task {delivery.task} is folded in when its actor writes something else where it lay")
        super()._take(intake)

    def _due(self, job: Job) -> None:
        if self.hub.gone:
            return
        if isinstance(job, Make):
            self.adder.makes = job.step.version
            self._step(job)
        else:
            self._do(job)
        self._tell()

    def _rest(self, step: Step) -> None:
        if not self.hub.gone:
            self._after(step)
            self._tell()

    def _tell(self) -> None:
        self.hub.learned()
        if self._unsaid and not self._syncs:
            self._syncs = True
            self.hub.time.at(self.hub.time.now + 0.005 * self.hub.time.random(), self._synced)

    def _synced(self, _: None) -> None:
        self._syncs = False
        if not self.hub.gone:
            self._flush()
            self.hub.learned()


class Hub(Process):
    """A life of the coordinator's process."""

    def __init__(self, world: World) -> None:
        super().__init__(world.time, world.rng.uniform(0, 1e6), TURN)
        self.world, self.audit = world, world.audit
        s = world.setting
        self.found, adder = world.disk.recover()
        recording = world.disk.recording(self.found, adder, self.clock, self._told)
        self.plan = s.schedule.plan(self.found.asked)
        self.core = Watched(
            self.plan,
            s.goal,
            s.bounds,
            self.found,
            self.clock(),
        )
        self.core.hub = self
        self.learner = Slow(self, adder, recording, self.found.version)
        self.models: dict[int, Model] = {}  # version -> model, of the last RECENT versions
        self.nbytes = s.work_bytes or LAYOUT.nbytes  # bytes of a contribution's arrays
        self.common = Common(scarce=s.changes) if s.shares else None
        self.opened: set[int] = set()  # numbers of products that are read in memory that actors lent
        self.returned: set[int] = set()  # numbers of products that were read there, and given back
        local = ("", *(f"key {place}" for place in range(0, s.actors, 2)))
        sharing = self.common.sharing if self.common else Sharing()
        premises = Premises("run", "host", local, sharing.offer, {"layout": self.nbytes}, LAYOUT.nbytes, False, s.work_room)
        self.traffic = Traffic(self.core, premises, sharing, *self._newest())
        self.finished: Finish | None = None
        self.lost: dict[bytes, float] = {}  # unreachable peer -> time at which the shell heard of it
        self._acts: Mapping[type[Any], Callable[[Any], Happening | None]] = {
            Send: self._send,
            Greet: self._greet,
            Ship: self._ship,
            Store: self._store,
            Open: self._open,
            LetGo: self._let_go,
            Brief: self._brief,
            Fold: self._fold,
            Step: self._step,
            Evict: self._evict,
            Probe: self._probe,
            Finish: self._finish,
        }
        self.audit.begin(self)

    # Events in

    def hear(self, peer: bytes, envelope: Envelope, payload: Product | None, user: str) -> None:
        self.lost.pop(peer, None)  # a message that was under way makes a lost line one to be tried again
        arrays = None
        match envelope.message:
            case Chunk(_, first, last) if payload is not None and last > first:
                arrays = Stuff(payload, last - first)
            case Contribute() if payload is not None:
                arrays = Stuff(payload, self.nbytes)
        self.handle(Heard(peer, envelope, user=user, arrays=arrays))
        actor = self.core.facts.roster.actors.get(envelope.session) if isinstance(envelope.message, Ready) else None
        if actor and actor.user == user and envelope.epoch == self.core.facts.epoch:
            if self.traffic.lanes.by_session.get(actor.session) != peer:
                raise ViolationError(f"{actor.name} has another line for arrays, and is asked on the last one")
            self._reconnected(actor.session)
        self.tick()  # a turn of the server ends with a look at the clock

    def _reconnected(self, session: bytes) -> None:
        """Check that the traffic waits for no piece that was under way on the session's lost line. Raises ViolationError."""
        fetched = self.traffic.receiving._fetching.get(session)
        if fetched and fetched.fetch and fetched.fetch._asked:
            raise ViolationError(f"pieces of {fetched.task} are waited for that were under way on a connection that is lost")

    def ended(self, pid: int) -> None:
        """Tell the core that a process of this machine has ended; later, if this process is stopped."""
        if self.frozen:
            self.later(self.ended, pid)
        elif not self.gone and not self.finished:
            self.handle(Ended(pid))

    def learned(self, _: None = None) -> None:
        """Handle the learner's outcomes; later, if this process is stopped."""
        if self.frozen:
            self.later(self.learned, None)
            return
        while self.learner.outcomes and not self.gone:
            outcome = self.learner.outcomes.popleft()
            match outcome:
                case Stepped(version, _, moved):
                    if self.common:
                        self.common.sharing.publish(version, moved)
                    self.traffic.publish(*self._newest())
                    self.handle(outcome)
                case Briefed(_, attempt, layout, memory) if layout:
                    self.handle(replace(outcome, arrays=Stuff(Handout(attempt, memory), memory.nbytes)))
                case _:
                    self.handle(outcome)  # type: ignore[arg-type]

    def _newest(self) -> tuple[int, Stuff, Changed]:
        self.published: tuple[int, Model] = self.learner.newest  # type: ignore[assignment]
        version, self.models[version] = self.published
        self.models.pop(version - RECENT, None)
        nbytes = self.world.setting.weights_bytes
        return version, Stuff(self.published[1], nbytes), Changed(self.learner.lately, self.models, nbytes // 2)

    def _told(self, text: str) -> None:
        if not self.world.setting.forks:
            raise ViolationError(f"the recording says: {text}")

    def tick(self) -> None:
        self.handle(TICK)

    def handle(self, happening: Happening) -> None:
        """Take a happening, carry out the deeds that follow, and take their answers, as the server does."""
        happenings, now, acts = [happening], self.clock(), self._acts
        for one in happenings:
            deeds = self.traffic.handle(one, now)
            happenings += [answer for deed in deeds if (act := acts.get(type(deed))) and (answer := act(deed))]
        self.audit.settled(self)

    # Deeds out

    def _send(self, send: Send) -> Lost | None:
        peer, envelope = send.peer, send.envelope
        known = self.lost.get(peer, self.time.now) < self.time.now
        if isinstance(envelope.message, Want) and known and peer != self.core.facts.roster.actors[envelope.session].peer:
            raise ViolationError(f"{envelope.message} goes over a connection that is lost")
        lent = isinstance(envelope.message, Weights) and envelope.message.slot
        return self._down(peer, envelope, self.published[1] if lent else None)

    def _greet(self, greet: Greet) -> Lost | None:
        welcome = greet.envelope.message
        if isinstance(welcome, Welcome) and welcome.resumed and greet.envelope.session not in self.traffic.lanes.by_session:
            self._reconnected(greet.envelope.session)
        return self._down(greet.peer, greet.envelope, None)

    def _ship(self, ship: Ship) -> Lost | None:
        stuff: Any = ship.arrays
        return self._down(ship.peer, ship.envelope, stuff.what)

    def _down(self, peer: bytes, envelope: Envelope, payload: Model | Delta | Handout | None) -> Lost | None:
        actor, connection = self.core.facts.roster.actors.get(envelope.session), self.world.wire.peers.get(peer)
        if actor and connection and connection.life.user != actor.user and not isinstance(envelope.message, Refused):
            raise ViolationError(f"{envelope.message} for {actor.name} goes to who has another key")
        if not (why := self.world.wire.down(peer, envelope, payload)):
            return None
        self.lost.setdefault(peer, self.time.now)
        return Lost(peer, why)

    def _store(self, store: Store) -> Stored:
        delivery, piece = store.delivery, store.piece
        assert isinstance(piece, Stuff)
        if (actor := self.core.facts.roster.actors[delivery.session]).user != piece.what.user:
            raise ViolationError(f"a piece of task {delivery.task} of {actor.name} comes under another key")
        delivery.arrays = delivery.arrays or {}
        delivery.arrays[store.first, store.first + piece.nbytes] = piece.what
        if len(set(delivery.arrays.values())) > 1 and any(one.honest for one in delivery.arrays.values()):
            raise ViolationError(f"task {delivery.task} is put together from what was made twice")
        return Stored(delivery)

    def _open(self, asked: Open) -> Opened:
        number = asked.message.slot[0]
        lent = self.world.lent.get(number)
        if lent is None or number in self.returned:
            return Opened(asked, None, "shared memory: it was given back")
        self.opened.add(number)
        return Opened(asked, Stuff(lent, self.nbytes))

    def _let_go(self, deed: LetGo) -> None:
        delivery = deed.delivery
        if delivery.arrays is None:
            raise ViolationError(f"the arrays of task {delivery.task} are let go of twice")
        if delivery.message.slot:
            self.opened.discard(delivery.message.slot[0])
            self.returned.add(delivery.message.slot[0])
        delivery.arrays = None

    def _brief(self, brief: Brief) -> None:
        self.learner.put([brief])

    def _fold(self, fold: Fold) -> None:
        if not fold.task.counts:
            return
        delivery = self.traffic.deliveries[fold.message.task]
        found = product(delivery)
        if found is None:
            raise ViolationError(f"task {delivery.task} goes to the learner without arrays")
        if delivery.fetch and sum(last - first for first, last in delivery.arrays) != delivery.message.nbytes:
            raise ViolationError(f"task {delivery.task} is taken for whole with pieces {sorted(delivery.arrays)}")
        self.learner.put([Loaded(fold, found.bundle, delivery)])

    def _step(self, step: Step) -> None:
        self.learner.put([Make(step, self.common.sharing.draft() if self.common else None)])

    def _evict(self, evict: Evict) -> None:
        self.world.evict(evict.peer)

    def _probe(self, probe: Probe) -> Pulse | None:
        seconds = self.world.wire.silent(probe.peer)
        return None if seconds is None else Pulse(probe.peer, seconds)

    def _finish(self, finish: Finish) -> None:
        self.finished = finish
        self.time.stopped = True
