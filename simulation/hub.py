"""A simulated coordinator's process: the production's core, learner and recording, and a shell around them.

The one idea: one life is made of what the disk holds and of nothing else, exactly as the command line makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from shoal.coordinator.deciding.core import Core
from shoal.coordinator.deciding.events import (
    Admit,
    Brief,
    Event,
    Evict,
    Finish,
    Fold,
    Folded,
    Gone,
    Heard,
    Lost,
    Moved,
    Outdated,
    Pull,
    Send,
    SendTask,
    SendWeights,
    Stalled,
    Step,
    Stepped,
    Tick,
    Unbrief,
    Unfit,
    Unpull,
)
from shoal.coordinator.keeping.recording import Recording
from shoal.coordinator.learner import Handed, Intake, Job, Learner, Make
from shoal.coordinator.receiving import Receiving, Stream
from shoal.coordinator.serving import Serving
from shoal.protocol.layout import ALIGNMENT, Bundle
from shoal.protocol.messages import WHOLE, Assign, Chunk, Contribute, Envelope, Have, Ready, TaskName, Want, Weights, Welcome
from shoal.simulation.actors import Product
from shoal.simulation.books import ViolationError
from shoal.simulation.disk import LAYOUT, RECENT, Adder, Delta, Handout, Model
from shoal.simulation.wire import Process

if TYPE_CHECKING:
    from shoal.simulation.world import World

TURN = 0.05  # seconds between looks at the clock
TICK = Tick()


class Finite:
    """The check of a contribution's numbers: a product that is odd is not finite."""

    def look(self, bundle: Bundle, message: Contribute) -> tuple[str, None]:
        return "not finite" if bundle.data[0] & 1 else "", None


@dataclass(frozen=True, slots=True)
class Sized:
    """Arrays as Serving sees them: a model, or what changed in one, and how many bytes it is said to have."""

    model: Model | Delta
    nbytes: int


class Slow(Learner):
    """The production's learner, each of whose jobs takes a while, and each sync of its journal another."""

    def __init__(self, hub: Hub, adder: Adder, recording: Recording, version: int) -> None:
        self.hub = hub
        self.adder = adder
        self._free_at = 0.0
        self._syncs = False
        plain: Any = adder
        finite: Any = Finite()
        super().__init__(plain, finite, hub.clock, version=version, recording=recording, briefs=[LAYOUT])

    def put(self, jobs: Sequence[Job]) -> None:
        time, setting = self.hub.time, self.hub.world.setting
        for job in jobs:
            self._free_at = (
                max(self._free_at, time.now) + (setting.step if isinstance(job, Make) else setting.fold) * time.random()
            )
            time.at(self._free_at, self._due, job)
            if isinstance(job, Make):
                self._free_at += setting.step  # a snapshot's
                time.at(self._free_at, self._rest, job.step)

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
    """One life of the coordinator's process."""

    def __init__(self, world: World) -> None:
        super().__init__(world.time, world.rng.uniform(0, 1e6), TURN)
        self.world, self.audit = world, world.audit
        s = world.setting
        self.found, adder = world.disk.recover()
        recording = world.disk.recording(self.found, adder, self.clock, self._told)
        self.plan = s.schedule.plan(self.found.asked)
        self.core = Core(
            self.plan,
            s.goal,
            s.rules,
            version=self.found.version,
            steps=self.found.steps,
            drawn=self.found.drawn,
            folded=self.found.folded,
            epoch=recording.epoch,
            kept=self.found.kept,
            promises=self.found.promises,
            now=self.clock(),
        )
        self.learner = Slow(self, adder, recording, self.found.version)
        self.published: tuple[int, Model] = self.learner.newest  # type: ignore[assignment]
        self.serving, self.receiving = Serving(), Receiving(s.work_room)
        self.models: dict[int, Model] = {}  # of late, by version
        self.handouts: dict[tuple[TaskName, int], Handout] = {}  # by task and attempt
        self.arrived: dict[TaskName, dict[tuple[int, int], Product]] = {}  # pieces of what is fetched
        self._publish()
        self.finished: Finish | None = None
        self.payload: Product | None = None
        self.folding: dict[tuple[int, int], Contribute] = {}
        self._acts: Mapping[type[Any], Callable[[Any], Iterable[Event]]] = {
            Send: self._send,
            SendWeights: self._weights,
            Brief: self._brief,
            SendTask: self._send_task,
            Unbrief: self._unbrief,
            Pull: self._pull,
            Unpull: self._unpull,
            Admit: self._admit,
            Fold: self._fold,
            Step: self._step,
            Evict: self._evict,
            Gone: self._parted,
            Finish: self._finish,
        }
        self.audit.begin(self)

    # Events in

    def hear(self, peer: bytes, envelope: Envelope, payload: Product | None) -> None:
        message = envelope.message
        match message:
            case Want() | Chunk() | Ready():
                self._moved(peer, envelope, message, payload)
            case Contribute():
                waits = message.nbytes > 0 and payload is None
                fault = "0 bytes of arrays" if message.layout and payload is None and not waits else ""
                self.payload = payload
                self.handle(Heard(peer, envelope, fault, whole=not waits or message.task in self.folding))
            case _:
                if isinstance(message, Have):
                    self.serving.end(envelope.session, message.version)
                self.payload = None
                self.handle(Heard(peer, envelope))
        self.tick()  # a turn of the server ends with a look at the clock

    def _moved(self, peer: bytes, envelope: Envelope, message: Want | Chunk | Ready, payload: Product | None) -> None:
        """As the server does it."""
        session = envelope.session
        actor = self.core.roster.actors.get(session)
        if actor is None or envelope.epoch != self.core.epoch:
            return
        self.receiving.lanes.setdefault(session, peer)
        match message:
            case Want((_,) | (_, _) as what, first, last):
                part = self.serving.part(session, what, first, last)
                self.handle(Outdated(session, what[0]) if part is None else Moved(session))
                if part is not None:
                    chunk = Envelope(session, self.core.epoch, Chunk(what, first, last))
                    sized: Any = part.whole
                    self.world.wire.down(peer, chunk, sized.model)
            case Want((version, index, attempt) as what, first, last):
                self._hand(peer, session, (version, index), attempt, Chunk(what, first, last))
            case Chunk():
                whole = payload is not None or message.last == message.first
                stream = self.receiving.came(session, message, self.clock()) if whole else None
                self.handle(Moved(session, *self.receiving.to_go(session, message)))
                if stream is not None and payload is not None and message.last > message.first:
                    self._came(stream, message, payload)
            case Ready():
                self.receiving.lanes[session] = peer
                self.receiving.cut(session)

    def _hand(self, peer: bytes, session: bytes, task: TaskName, attempt: int, chunk: Chunk) -> None:
        lease, handout = self.core.ledger.leases.get(task), self.handouts.get((task, attempt))
        if lease is None or (lease.session, lease.attempt) != (session, attempt) or handout is None:
            self.handle(Moved(session))
        elif 0 <= chunk.first <= chunk.last <= handout.memory.nbytes:
            self.handle(Moved(session, task, handout.memory.nbytes - chunk.last))
            self.world.wire.down(peer, Envelope(session, self.core.epoch, chunk), handout)

    def _came(self, stream: Stream, chunk: Chunk, product: Product) -> None:
        message = stream.message
        pieces = self.arrived.setdefault(message.task, {})
        pieces[chunk.first, chunk.last] = product
        if len(set(pieces.values())) > 1 and any(one.honest for one in pieces.values()):
            raise ViolationError(f"task {message.task} is put together from what was made twice")
        if stream.whole and (actor := self.core.roster.actors.get(stream.session)):
            if sum(last - first for first, last in self.arrived.pop(message.task)) != message.nbytes:
                raise ViolationError(f"task {message.task} is taken for whole with pieces {sorted(pieces)}")
            self.payload = product
            self.handle(Heard(actor.peer, Envelope(stream.session, self.core.epoch, message)))
            if message.task not in self.folding:
                self._drop(message.task)

    def _publish(self) -> None:
        version, self.models[version] = self.published
        self.lately = self.learner.lately
        self.models.pop(version - RECENT, None)
        self.serving.publish(version)

    def learned(self, _: None = None) -> None:
        """What the learner has to tell; waits where this process is stopped."""
        if self.frozen:
            self.later(self.learned, None)
            return
        while self.learner.outcomes and not self.gone:
            outcome = self.learner.outcomes.popleft()
            if isinstance(outcome, Stepped):
                self.published = self.learner.newest  # type: ignore[assignment]
                self._publish()
            elif isinstance(outcome, Folded | Unfit):
                del self.folding[outcome.task]
                self._drop(outcome.task)
            elif isinstance(outcome, Handed):
                briefed, memory = outcome.told, outcome.bundle
                if memory is not None:
                    self.handouts[briefed.task, briefed.attempt] = Handout(briefed.attempt, memory)  # type: ignore[arg-type]
                self.handle(briefed)
                continue
            self.handle(outcome)  # type: ignore[arg-type]

    def _told(self, text: str) -> None:
        if not self.world.setting.forks:
            raise ViolationError(f"the recording says: {text}")

    def tick(self) -> None:
        self.handle(TICK)
        if not self.receiving.streams:
            return
        lease = self.core.rules.lease
        for task in self.receiving.stalled(self.clock() - lease) if lease else ():
            self.handle(Stalled(task))
        for session, want in self.receiving.ask(self.clock(), self.core.starves()):
            envelope, lanes = Envelope(session, self.core.epoch, want), self.receiving.lanes
            if session in lanes:
                if any(self._down(lanes[session], envelope, None)):
                    del lanes[session]
                continue
            for lost in self._down(self.core.roster.actors[session].peer, envelope, None):
                self.handle(lost)

    def handle(self, event: Event) -> None:
        """An event, and whatever comes of carrying out its effects, as the server does it."""
        events, time, acts = [event], self.time, self._acts
        for one in events:
            effects = self.core.handle(one, time.now + self.offset)
            time.events += 1 + len(effects)
            self.audit.saw(one, effects, self.payload)
            for effect in effects:
                if act := acts.get(type(effect)):
                    events += act(effect)

    # Effects out

    def _send(self, effect: Send) -> Iterable[Event]:
        return self._down(effect.peer, effect.envelope, None)

    def _weights(self, effect: SendWeights) -> Iterable[Event]:
        version, base, nbytes = effect.version, effect.held, self.world.setting.weights_bytes
        if effect.same:
            same = Weights(version, base=base, kept=self.core.kept)
            return self._down(effect.peer, Envelope(effect.session, self.core.epoch, same), None)
        told: Model | Delta = self.published[1]
        if (changed := self.lately.since(base)) is None:
            base = WHOLE
        else:
            if [*changed.view(np.int64)[:: ALIGNMENT // 8]] != list(range(base + 1, version + 1)):
                raise ViolationError(f"what changed from version {base} to {version} is told by {changed}")
            told, nbytes = Delta(self.models[base], self.published[1]), nbytes // 2
        if nbytes:
            sized: Any = Sized(told, nbytes)
            self.serving.begin(effect.session, (version,) if base == WHOLE else (version, base), sized)
        weights = Envelope(effect.session, self.core.epoch, Weights(version, (), nbytes, base, self.core.kept))
        return self._down(effect.peer, weights, None if nbytes else told)

    def _brief(self, brief: Brief) -> Iterable[Event]:
        self.learner.put([brief])
        return ()

    def _send_task(self, effect: SendTask) -> Iterable[Event]:
        session, assign = effect.envelope.session, effect.envelope.message
        assert isinstance(assign, Assign)
        if self.world.setting.brief_bytes:
            return self._down(effect.peer, effect.envelope, None)
        handout, said = self.handouts[assign.task, assign.attempt], replace(assign, nbytes=0)
        inline = self._down(effect.peer, replace(effect.envelope, message=said), handout)
        return (Moved(session, assign.task), *inline)

    def _unbrief(self, unbrief: Unbrief) -> Iterable[Event]:
        self.handouts.pop((unbrief.task, unbrief.attempt), None)
        return ()

    def _pull(self, pull: Pull) -> Iterable[Event]:
        self.receiving.pull(pull.session, pull.message)
        return ()

    def _unpull(self, unpull: Unpull) -> Iterable[Event]:
        self._drop(unpull.task)
        return ()

    def _drop(self, task: TaskName) -> None:
        self.receiving.drop(task)
        self.arrived.pop(task, None)

    def _admit(self, effect: Admit) -> Iterable[Event]:
        rules, many = self.core.rules, len(self.core.roster)
        if not effect.resumed:
            self.receiving.lanes.pop(effect.session, None)
        elif effect.session not in self.receiving.lanes:
            self.receiving.cut(effect.session)
        beat, patience = rules.beat_for(many), rules.patience_for(many)
        place = (effect.hello.greeting, effect.resumed, rules.retain)
        welcome = Welcome("run", effect.number, beat, patience, "host", (), *place)
        return self._down(effect.peer, Envelope(effect.session, self.core.epoch, welcome), None)

    def _down(self, peer: bytes, envelope: Envelope, payload: Model | Delta | Handout | None) -> Iterable[Event]:
        why = self.world.wire.down(peer, envelope, payload)
        return (Lost(peer, why),) if why else ()

    def _fold(self, fold: Fold) -> Iterable[Event]:
        name = fold.message.task
        if not fold.task.counts:
            return (Folded(name),)
        self.folding[name] = fold.message
        if self.payload is None:
            raise ViolationError(f"task {name} goes to the learner without arrays")
        self.learner.put([Intake(fold, self.payload.bundle)])
        return ()

    def _step(self, step: Step) -> Iterable[Event]:
        self.learner.put([Make(step)])
        return ()

    def _evict(self, evict: Evict) -> Iterable[Event]:
        self.world.evict(evict.peer)
        return ()

    def _parted(self, gone: Gone) -> Iterable[Event]:
        self.receiving.gone(gone.session)
        self.serving.gone(gone.session)
        return ()

    def _finish(self, finish: Finish) -> Iterable[Event]:
        self.finished = finish
        self.time.stopped = True
        return ()
