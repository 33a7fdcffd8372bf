"""The doing half of a coordinator: it waits, sends, copies and asks the learner. None of it decides.

The one idea: one thread owns the sockets and what decides; the learner's thread owns the device; they hand each other values.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shoal.coordinator.arrays import Arrays
from shoal.coordinator.deciding import deeds, events
from shoal.coordinator.deciding.core import Core
from shoal.coordinator.deciding.deeds import Deed, Happening
from shoal.coordinator.deciding.traffic import Premises, Traffic
from shoal.coordinator.learner import Answer, Broke, Evaluated, Intake, Job, Learner, Make
from shoal.coordinator.reports import Before, Observer, Report
from shoal.coordinator.sharing import Sharing
from shoal.coordinator.telling import Telling
from shoal.protocol.layout import Layout
from shoal.protocol.link import NEAR, Arrival, Payload
from shoal.protocol.messages import Chunk, Contribute, Envelope

TURN = 0.05  # seconds: the longest wait between looks at the clock
LOOK = 0.02  # seconds between two looks at which processes have ended: a look costs a call of the system
ROOM = 1 << 25  # bytes of contributions that may be fetched and not yet folded in; more if SHARE of a model is more
SHARE = 0.4  # of a model's bytes, that these contributions may have


class Wire(Protocol):
    """The part of a Hub that the server needs; the plain loop has a wire without sockets. inline: the most bytes of arrays that
    go with their message."""

    address: str
    inline: int

    def say(self, peer: bytes, envelope: Envelope, payload: Payload | None = None) -> str: ...

    def flush(self) -> list[tuple[bytes, str]]: ...

    def silent(self, peer: bytes) -> float | None: ...

    def drain(self) -> Iterator[Arrival]: ...

    def wait(self, seconds: float) -> None: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class Outside:
    """News for a server that does not come by its sockets. interrupted: a reason to end the run here, or "".
    pauses: True if actors are then to wait for the run's next life.
    nudged: True if the plan was fed since the last call; the feeder wakes the wire. gone: process ids of this machine's
    actors that have ended since the last call. ran: (version, index, attempt) of the task that the worker of this process of
    this machine began last; (): it began none; None: nobody keeps a record. evict: ends these processes, whose workers hang."""

    interrupted: Callable[[], str] = str
    pauses: Callable[[], bool] = bool
    nudged: Callable[[], bool] = bool
    gone: Callable[[], Iterable[int]] = tuple
    ran: Callable[[int], tuple[int, ...] | None] = lambda pid: None
    evict: Callable[[Sequence[int]], None] = lambda pids: None


class Server:
    """Runs a core over a wire with a learner, to the run's end.

    welcome: workload and layout, packed (protocol/codec.py). layouts: the layouts that contributions may have, by digest.
    local: the users whose word about their machine and process is believed. folder: for contributions too large for memory;
    None: the system's temporary folder. before: what earlier lives of the run came to. real: as in
    Telling. job, strict, threads, runs: as in
    Premises.
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
        job: str = "",
        strict: bool = False,
        threads: int = 0,
        before: Before | None = None,
        runs: bool = False,
        real: Callable[[], float] | None = None,
    ) -> None:
        self.core, self.wire, self.learner, self.name = core, wire, learner, run
        self.welcome, self.clock, self.outside = welcome, clock, outside or Outside()
        version, weights = learner.newest
        near = wire.inline >= NEAR
        self.sharing = sharing or Sharing()
        self.sharing.begin(version, weights.data)
        self.arrays = Arrays(layouts, self.sharing, folder, near)
        room = max(ROOM, int(SHARE * weights.data.nbytes))
        sizes = {digest: layout.nbytes for digest, layout in self.arrays.layouts.items()}
        premises = Premises(run, host, local, self.sharing.offer, sizes, wire.inline, near, room, job, strict, threads, runs)
        self.traffic = Traffic(core, premises, self.sharing, version, weights.data, learner.lately)
        self.telling = Telling(core, learner, observer, clock, before or Before(), host, real)
        self.finished: events.Finish | None = None
        self._jobs: list[Job] = []  # for the learner, put at the end of a turn: waking its thread once is cheaper
        self._broke: BaseException | None = None
        self._look_at = clock()  # time from which ended processes are looked for again

    def run(self) -> events.Finish:
        """Turn until the core says Finish, and return it. Raises the error that broke the learner."""
        while self.finished is None:
            self.wire.wait(TURN)
            self.turn()
        while self.core.facts.farewell.waits(self.clock()):
            self.wire.wait(TURN)
            self._hear()
            self._flush()
        while not self.learner.finish(TURN):  # it may wait for room on the disk, and says so
            self._learned()
            self.telling.look()
        self._learned()
        if self._broke:
            raise self._broke
        self.telling.observer.moved(self.telling.progress())
        return self.finished

    def turn(self) -> None:
        """Look once at everything that may have happened: outcomes, messages, interrupt, nudge, clock."""
        self._learned()
        self._hear()
        if reason := self.outside.interrupted():
            self.handle(events.Interrupt(reason, self.outside.pauses()))
        if self.outside.nudged():
            self.handle(events.Nudge())
        if self.traffic.due(self.clock()):
            self.handle(events.Tick())
        while self._jobs:
            jobs, self._jobs = self._jobs, []
            self.learner.put(jobs)
            if self.learner.prompt:
                self._learned()
        self._flush()
        self.telling.look()

    # Events in

    def _hear(self) -> None:
        for arrival in self.wire.drain():
            self._take(arrival)
        if (now := self.clock()) >= self._look_at:
            self._look_at = now + LOOK
            for pid in self.outside.gone():
                self.handle(deeds.Ended(pid, self.outside.ran(pid)))

    def _flush(self) -> None:
        while unreached := self.wire.flush():
            for peer, why in unreached:
                self.handle(self._lost(peer, why))

    def _take(self, arrival: Arrival) -> None:
        """Take a message, or a fault of a message or of the wire, which came in place of a message."""
        envelope, payload = arrival.envelope, arrival.payload
        if envelope is not None:
            if payload is not None and isinstance(envelope.message, Contribute | Chunk):
                self.arrays.came(payload)
            self.handle(events.Heard(arrival.peer, envelope, user=arrival.user, arrays=payload))
        elif arrival.kind == "lost":
            self.handle(self._lost(arrival.peer, arrival.fault))
        elif arrival.kind == "silent":
            self.handle(events.Pulse(arrival.peer, float(arrival.fault)))
        else:
            said = "dropped a message: " if arrival.kind == "malformed" else ""
            self.telling.report(Report(arrival.kind, f"{said}{arrival.fault}", "warning"))

    def _learned(self) -> None:
        while self.learner.outcomes:
            self._outcome(self.learner.outcomes.popleft())

    def _outcome(self, outcome: Answer) -> None:
        match outcome:
            case Report():
                self.telling.report(outcome)
            case Evaluated(version, metrics):
                self.telling.evaluation(version, metrics)
            case Broke(error):
                self._broke = error
                # The actors hear nothing of it: another life may go on with them.
                self.finished = events.Finish("the learner failed", True)
            case events.Stepped(version, metrics, moved):
                self.telling.ages.ends(now := self.clock())
                self.telling.causes.ends(version, now)
                told = {**self.telling.flush(), **self.arrays.flush(), **metrics}
                self.sharing.publish(version, moved)
                self.traffic.publish(version, self.learner.newest[1].data, self.learner.lately)
                self.handle(outcome)
                self.telling.stepped(version, told)
            case events.Folded(task):
                delivery = self.traffic.deliveries[task]
                self.telling.tally.train(delivery.message, delivery.lag)
                self.handle(outcome)
            case _:
                self.handle(outcome)

    # Deeds out

    def handle(self, happening: Happening) -> None:
        """Take a happening, carry out the deeds that follow, and take the happenings that these deeds return."""
        happenings = [happening]
        for one in happenings:
            happenings.extend(filter(None, map(self._do, self.traffic.handle(one, self.clock()))))

    def _do(self, deed: Deed) -> Happening | None:
        match deed:
            case events.Send(peer, envelope):
                return self._say(peer, envelope, None)
            case events.Fold(task, message=message) if not task.counts:
                self.telling.tally.evaluate(message)
            case events.Fold(message=message):
                if message.steps:
                    took = self.core.facts.ledger.leases[message.task].took
                    self.telling.ages.came(deed.onto, message.trained, took, now := self.clock())
                    self.telling.causes.came(message.made_from, deed.onto, message.trained, took, now)
                self._jobs.append(Intake(deed, self.arrays.bundle(self.traffic.deliveries[message.task])))
            case deeds.LetGo(delivery):
                self.arrays.let_go(delivery)
            case deeds.Ship(peer, envelope):
                return self._say(peer, envelope, self.arrays.cut(deed))
            case deeds.Open():
                return self.arrays.open(deed)
            case deeds.Store():
                return self.arrays.store(deed)
            case events.Brief():
                self._jobs.append(deed)
            case deeds.Describe(peer, session):
                state = self.telling.state(self.name, self.finished.reason if self.finished else "running")
                return self._say(peer, Envelope(session, self.core.facts.epoch, state), None)
            case deeds.Greet(peer, envelope):
                return self._say(peer, envelope, self.welcome)
            case events.Step():
                self.telling.ages.begins(deed.version, self.clock())
                self.telling.causes.begins(deed.version)
                self._jobs.append(Make(deed, self.sharing.draft(), self.telling.tally.figures()))
            case Report():
                self.telling.report(deed)
            case events.Probe(peer):
                seconds = self.wire.silent(peer)
                return None if seconds is None else events.Pulse(peer, seconds)
            case events.Evict(peer):
                self.outside.evict([pid for pid, its in self.traffic.pids.items() if its == peer])
            case events.Finish():
                self.finished = deed
        return None

    def _say(self, peer: bytes, envelope: Envelope, payload: Payload | None) -> events.Lost | None:
        why = self.wire.say(peer, envelope, payload)
        return self._lost(peer, why) if why else None

    def _lost(self, peer: bytes, why: str) -> events.Lost:
        pid = next((pid for pid, its in self.traffic.pids.items() if its == peer), None)
        return events.Lost(peer, why, ran=None if pid is None else self.outside.ran(pid))
