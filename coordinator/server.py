"""The doing half of a coordinator: it waits, sends, copies and asks the learner. None of it decides.

The one idea: one thread owns the sockets and the core; the learner's thread owns the device; they hand each other values.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from shoal.coordinator.arrays import Arrays
from shoal.coordinator.deciding.core import Core
from shoal.coordinator.deciding.events import (
    Admit,
    Brief,
    Effect,
    Event,
    Evict,
    Finish,
    Fold,
    Folded,
    Gone,
    Heard,
    Interrupt,
    Lost,
    Moved,
    Nudge,
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
from shoal.coordinator.deciding.patience import waiting_for
from shoal.coordinator.deciding.roster import Actor
from shoal.coordinator.keeping.disk import DiskTrouble
from shoal.coordinator.learner import Answer, Broke, Evaluated, Handed, Intake, Job, Learner, Make
from shoal.coordinator.reports import Observer, Progress, Report
from shoal.coordinator.serving import What
from shoal.coordinator.sharing import Sharing
from shoal.coordinator.tally import Rate, Tally
from shoal.protocol.layout import Layout
from shoal.protocol.link import Arrival, Payload
from shoal.protocol.messages import Assign, Chunk, Contribute, Envelope, Have, Ready, TaskName, Want, Welcome
from shoal.protocol.work import Metrics

TURN = 0.05  # seconds: the longest wait between looks at the clock
LOOK = 0.25  # seconds between two looks of an observer
CHATTY = 10  # reports of one kind in a second; more are counted, not shown


class Wire(Protocol):
    """What the server needs of a Hub; the plain loop has one without sockets. inline: bytes of arrays that go with their
    message at most."""

    address: str
    inline: int

    def say(self, peer: bytes, envelope: Envelope, payload: Payload | None = None) -> str: ...

    def flush(self) -> list[tuple[bytes, str]]: ...

    def drain(self) -> Iterator[Arrival]: ...

    def wait(self, seconds: float) -> None: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class Outside:
    """What a server is told from outside its sockets. interrupted: a reason to end the run here, or "".
    nudged: whether the plan was fed since the last call; whoever feeds it wakes the wire. gone: process ids of this machine's
    actors that have ended since the last call. evict: end these, whose workers hang."""

    interrupted: Callable[[], str] = str
    nudged: Callable[[], bool] = bool
    gone: Callable[[], Iterable[int]] = tuple
    evict: Callable[[Sequence[int]], None] = lambda pids: None


@dataclass(slots=True)
class Chatter:
    """Keeps a flood of reports of one kind from drowning the rest."""

    since: float = 0.0
    seen: dict[str, int] = field(default_factory=dict)

    def admits(self, report: Report, now: float) -> bool:
        if now - self.since > 1.0:
            self.since, self.seen = now, {}
        self.seen[report.kind] = self.seen.get(report.kind, 0) + 1
        return self.seen[report.kind] <= CHATTY


class Server:
    """Runs a core over a wire with a learner, to the run's end.

    welcome: workload and layout, packed (protocol/codec.py). layouts: those that contributions may have, by digest.
    local: the users whose word about which machine and process they are is believed. folder: for contributions too large for
    memory.
    """

    def __init__(
        self,
        core: Core,
        wire: Wire,
        learner: Learner,
        observer: Observer,
        *,
        run: str,
        host: str,
        welcome: bytes,
        layouts: Iterable[Layout],
        clock: Callable[[], float],
        outside: Outside | None = None,
        sharing: Sharing | None = None,
        local: Container[str] = ("",),
        folder: Path | None = None,
    ) -> None:
        self.core, self.wire, self.learner, self.observer = core, wire, learner, observer
        self.run_name, self.host, self.welcome = run, host, welcome
        self.clock, self.outside, self.local = clock, outside or Outside(), local
        self.arrays = Arrays(layouts, wire.inline, learner.newest[1].data.nbytes, sharing, folder)
        self.tally = Tally()
        self.began = clock()
        self.finished: Finish | None = None
        self.metrics: dict[str, float] = {}
        self._jobs: list[Job] = []  # for the learner, put at the end of a turn: a thread that is woken once is cheaper
        self._folding: dict[TaskName, tuple[Contribute, int]] = {}
        self._pids: dict[int, bytes] = {}
        self._looked_at = 0.0
        self._chatter = Chatter()
        self._rates = (Rate(), Rate())
        self._first_steps = core.steps
        self._broke: BaseException | None = None
        self.arrays.begin(*learner.newest)

    def run(self) -> Finish:
        """Until the core says Finish. Raises what broke the learner."""
        while self.finished is None:
            self.wire.wait(TURN)
            self.turn()
        while self.core.farewell.waits(self.clock()):
            self.wire.wait(TURN)
            self._hear()
            self._flush()
        self.learner.finish()
        self._learned()
        if self._broke:
            raise self._broke
        self.observer.moved(self.progress())
        return self.finished

    def turn(self) -> None:
        """One look at everything that may have happened."""
        self._learned()
        self._hear()
        if reason := self.outside.interrupted():
            self.handle(Interrupt(reason))
        if self.outside.nudged():
            self.handle(Nudge())
        self.handle(Tick())
        self._ask()
        if self._jobs:
            jobs, self._jobs = self._jobs, []
            self.learner.put(jobs)
        self._flush()
        self._look()

    # Events in

    def _hear(self) -> None:
        for arrival in self.wire.drain():
            self._take(arrival)
        for pid in self.outside.gone():
            if peer := self._pids.pop(pid, None):
                self.handle(Lost(peer, f"ended (process {pid})", dead=True))

    def _flush(self) -> None:
        while unreached := self.wire.flush():
            for peer, why in unreached:
                self.handle(Lost(peer, why))

    def _take(self, arrival: Arrival) -> None:
        if arrival.envelope is None:
            self._amiss(arrival)
            return
        heard = Heard(arrival.peer, arrival.envelope, user=arrival.user)
        match arrival.envelope.message:
            case Want() | Chunk() | Ready() as message:
                self._moved(arrival, arrival.envelope, message)
            case Contribute() as message:
                self._contributed(heard, message, arrival.payload)
            case Have(version, using):
                self.arrays.arrived(self._speaker(arrival.peer), version, using)
                self.handle(heard)
            case _:
                self.handle(heard)

    def _speaker(self, peer: bytes) -> bytes:
        """The session whose connection this is, whatever it says of itself; b"" where it is nobody's."""
        actor = self.core.roster.at(peer)
        return actor.session if actor else b""

    def _amiss(self, arrival: Arrival) -> None:
        """No message, but something that befell one, or the wire."""
        if arrival.kind == "lost":
            self.handle(Lost(arrival.peer, arrival.fault))
        else:
            said = "dropped a message: " if arrival.kind == "malformed" else ""
            self._report(Report(arrival.kind, f"{said}{arrival.fault}", "warning"))

    def _contributed(self, heard: Heard, message: Contribute, payload: memoryview | None) -> None:
        if message.task in self._folding:
            self.handle(heard)  # said again while its verdict is on its way
            return
        fault, whole = self.arrays.take(self._speaker(heard.peer), message, payload)
        self.handle(Heard(heard.peer, heard.envelope, fault, heard.user, whole))
        if whole and message.task not in self._folding:
            self.arrays.let_go(message)

    def _moved(self, arrival: Arrival, envelope: Envelope, message: Want | Chunk | Ready) -> None:
        """On an actor's line for arrays, which is known by nothing but its session and key."""
        session = envelope.session
        actor = self.core.roster.actors.get(session)
        if actor is None or actor.user != arrival.user or envelope.epoch != self.core.epoch:
            return  # what it says on its other line is answered
        lanes = self.arrays.receiving.lanes
        lanes.setdefault(session, arrival.peer)
        match message:
            case Want((_,) | (_, _) as what, first, last):
                self._serve(arrival.peer, session, what, first, last)
            case Want((version, index, attempt), first, last):
                self._serve_brief(arrival.peer, session, (version, index), attempt, first, last)
            case Chunk():
                self._came(actor, message, arrival.payload)
            case Ready():
                lanes[session] = arrival.peer
                self.arrays.receiving.cut(session)

    def _came(self, actor: Actor, chunk: Chunk, payload: memoryview | None) -> None:
        try:
            whole = self.arrays.came(actor.session, chunk, payload, self.clock())
        except DiskTrouble as trouble:
            self.handle(Moved(actor.session))
            self._report(Report("disk", f"{trouble}: a contribution of {actor.name} waits until there is room", "error"))
            return
        self.handle(Moved(actor.session, *self.arrays.receiving.to_go(actor.session, chunk)))
        if whole:
            self.handle(Heard(actor.peer, Envelope(actor.session, self.core.epoch, whole), user=actor.user))
            if whole.task not in self._folding:
                self.arrays.let_go(whole)

    def _ask(self) -> None:
        """For more of what is being fetched; and see to what does not come."""
        now, lease = self.clock(), self.core.rules.lease
        for task in self.arrays.receiving.stalled(now - lease) if lease else ():
            self.handle(Stalled(task))
        for session, want in self.arrays.receiving.ask(now, self.core.starves()):
            envelope, lanes = Envelope(session, self.core.epoch, want), self.arrays.receiving.lanes
            if session in lanes:  # so that one connection carries question and answer, and its end is the end of both
                if self.wire.say(lanes[session], envelope):
                    del lanes[session]  # another follows, and says Ready
            elif why := self.wire.say(peer := self.core.roster.actors[session].peer, envelope):
                self.handle(Lost(peer, why))

    def _serve(self, peer: bytes, session: bytes, what: What, first: int, last: int) -> None:
        part = self.arrays.part(session, what, first, last)
        self.handle(Outdated(session, what[0]) if part is None else Moved(session))
        if part is not None:
            chunk = Envelope(session, self.core.epoch, Chunk(what, first, last))
            self.wire.say(peer, chunk, part if len(part) else None)  # if it does not arrive it will be asked for again

    def _serve_brief(self, peer: bytes, session: bytes, task: TaskName, attempt: int, first: int, last: int) -> None:
        """To whoever has the task. What is over is not to be had, as its Cancel says."""
        lease = self.core.ledger.leases.get(task)
        mine = lease is not None and (lease.session, lease.attempt) == (session, attempt)
        part = self.arrays.brief_part(task, attempt, first, last) if mine else None
        if part is None:
            self.handle(Moved(session))
            return
        self.handle(Moved(session, task, part.whole.nbytes - last))
        chunk = Envelope(session, self.core.epoch, Chunk((*task, attempt), first, last))
        self.wire.say(peer, chunk, part if len(part) else None)

    def _learned(self) -> None:
        while self.learner.outcomes:
            self._outcome(self.learner.outcomes.popleft())

    def _outcome(self, outcome: Answer) -> None:
        match outcome:
            case Report():
                self._report(outcome)
            case Evaluated(version, metrics):
                self._tell(version, metrics)
            case Handed(briefed, bundle):
                self.arrays.hand(briefed.task, briefed.attempt, bundle)
                self.handle(briefed)
            case Broke(error):
                self._broke = error
                self.finished = Finish("the learner failed", True)  # no word to the actors: another life may go on with them
            case Stepped(version, metrics, moved):
                told = {**self.tally.flush(), **self.arrays.flush(), **metrics}
                self.arrays.publish(*self.learner.newest, self.learner.lately, moved)
                self.handle(outcome)
                self._tell(version, told)
            case Folded(task):
                message, lag = self._folding.pop(task)
                self.tally.train(message, lag)
                self.arrays.let_go(message)
                self.handle(outcome)
            case Unfit(task):
                self.arrays.let_go(self._folding.pop(task)[0])
                self.handle(outcome)
            case _:
                self.handle(outcome)

    # Effects out

    def handle(self, event: Event) -> None:
        """An event, and whatever comes of carrying out its effects."""
        events = [event]
        for one in events:
            for effect in self.core.handle(one, self.clock()):
                events.extend(self._do(effect))

    def _do(self, effect: Effect) -> Iterator[Event]:
        match effect:
            case Send(peer, envelope):
                yield from self._send(peer, envelope, None)
            case SendWeights(peer, session, _, held, same):
                weights, payload = self.arrays.weights(session, held, same)
                kept = replace(weights, kept=self.core.kept)
                yield from self._send(peer, Envelope(session, self.core.epoch, kept), payload)
            case Brief():
                self._jobs.append(effect)
            case SendTask(peer, envelope):
                yield from self._send_task(peer, envelope)
            case Unbrief(task, attempt):
                self.arrays.unbrief(task, attempt)
            case Pull(session, message):
                self.arrays.receiving.pull(session, message)
            case Unpull(task):
                self.arrays.drop(task)
            case Fold():
                yield from self._fold(effect)
            case Step():
                self._jobs.append(Make(effect, self.arrays.draft()))
            case Admit():
                yield from self._admit(effect)
            case Report():
                self._report(effect)
            case Evict(peer):
                self.outside.evict([pid for pid, its in self._pids.items() if its == peer])
            case Gone(session):
                self.arrays.gone(session)
            case Finish():
                self.finished = effect

    def _send(self, peer: bytes, envelope: Envelope, payload: Payload | None) -> Iterator[Event]:
        if why := self.wire.say(peer, envelope, payload):
            yield Lost(peer, why)

    def _send_task(self, peer: bytes, envelope: Envelope) -> Iterator[Event]:
        assign = envelope.message
        assert isinstance(assign, Assign)
        waits, payload = self.arrays.brief(assign)
        if payload is not None:
            yield Moved(envelope.session, assign.task)
        yield from self._send(peer, replace(envelope, message=waits), payload)

    def _admit(self, admit: Admit) -> Iterator[Event]:
        actor = self.core.roster.at(admit.peer)
        here = actor is not None and actor.user in self.local and admit.hello.host == self.host
        if here:
            self._pids[admit.hello.pid] = admit.peer
        shares = self.arrays.share(admit.session) if here and "shm" in admit.hello.offers else ()
        rules = self.core.rules
        many = len(self.core.roster)
        beat, patience = rules.beat_for(many), rules.patience_for(many)
        if not admit.resumed:
            self.arrays.receiving.lanes.pop(admit.session, None)
        elif admit.session not in self.arrays.receiving.lanes:
            self.arrays.receiving.cut(admit.session)
        welcome = Welcome(
            run=self.run_name,
            number=admit.number,
            beat=beat,
            patience=patience,
            host=self.host,
            shares=shares,
            greeting=admit.hello.greeting,
            resumed=admit.resumed,
            retain=rules.retain,
        )
        yield from self._send(admit.peer, Envelope(admit.session, self.core.epoch, welcome), self.welcome)

    def _fold(self, fold: Fold) -> Iterator[Event]:
        name = fold.message.task
        if not fold.task.counts:
            self.tally.evaluate(fold.message)
            yield Folded(name)
            return
        self._folding[name] = (fold.message, fold.onto - fold.message.made_from)
        self._jobs.append(Intake(fold, self.arrays.bundle(fold.message)))

    def _report(self, report: Report) -> None:
        if self._chatter.admits(report, self.clock()):
            self.observer.report(report)

    # What a person sees

    def _tell(self, version: int, metrics: Metrics) -> None:
        self.metrics.update(metrics)
        self.observer.stepped(version, metrics, self.progress())

    def _look(self) -> None:
        now = self.clock()
        if now - self._looked_at >= LOOK:
            self._looked_at = now
            self.observer.moved(self.progress())

    def progress(self) -> Progress:
        now, core = self.clock(), self.core
        seconds = now - self.began
        clients = core.ledger.counts.clients
        return Progress(
            version=core.version,
            goal=str(core.goal),
            done=core.goal.share(core.version, core.steps),
            seconds=seconds,
            contributions=clients,
            contributions_per_second=self._rates[0].at(now, clients),
            steps=core.steps,
            steps_per_second=self._rates[1].at(now, core.steps),
            actors=len(core.roster),
            lag=(self.metrics.get("lag_min", 0.0), self.metrics.get("lag_mean", 0.0), self.metrics.get("lag_max", 0.0)),
            shares=self._shares(seconds),
            metrics=dict(self.metrics),
            waiting_for=tuple(waiting_for(core)) if now - core.moved_at > core.rules.quiet else (),
        )

    def _shares(self, seconds: float) -> Mapping[str, float]:
        """Of the actors' time, and of the learner's."""
        whole = max(1e-9, seconds * max(1, len(self.core.roster)))
        trained, waited = min(1.0, self.tally.trained / whole), min(1.0, self.tally.waited / whole)
        moving = max(0.0, 1.0 - trained - waited)
        return {"waiting": waited, "training": trained, "moving": moving, "stepping": self.learner.busy / max(1e-9, seconds)}
