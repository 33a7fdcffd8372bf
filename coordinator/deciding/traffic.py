"""Traffic: decisions on lines, arrays and identities between a coordinator's sockets and its core. No sockets, no arrays.

The one idea: the core knows tasks and actors, and Traffic knows connections and bytes. Every event comes in here; Traffic hands
the core's events on to the core, and returns the core's effects as deeds that the shell carries out without an opinion. Arrays
pass through as values of which only the number of bytes is looked at.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from shoal.coordinator.deciding import deeds, events
from shoal.coordinator.deciding.claims import Figures
from shoal.coordinator.deciding.core import Core
from shoal.coordinator.deciding.deeds import Deed, Happening
from shoal.coordinator.deciding.events import Event
from shoal.coordinator.deciding.lanes import Lanes
from shoal.coordinator.deciding.receiving import Delivery, Receiving
from shoal.coordinator.deciding.serving import Serving, Sized
from shoal.coordinator.reports import Report
from shoal.protocol.budget import Buckets, Budget
from shoal.protocol.errors import printable
from shoal.protocol.fetching import MOST
from shoal.protocol.layout import run_of
from shoal.protocol.messages import (
    WHOLE,
    Ask,
    Assign,
    Chunk,
    Contribute,
    Envelope,
    Have,
    Hello,
    Ready,
    Refused,
    TaskName,
    Want,
    Weights,
    Welcome,
)

DIFFERED = 256  # sessions with another job's file that are remembered, so that each is told of once
GREETS = (Budget(messages=2, seconds=5), Budget(messages=20, seconds=10))  # Hellos that are answered, of a connection and a key
RETURNS = Budget(messages=0.05, seconds=20)  # Hellos that are answered of a session that had a place here, beside these
KNOWN = 16_384  # sessions that had a place here and are remembered; the session that was admitted longest ago goes first
ASKS = (Budget(messages=2, seconds=5), Budget(messages=20, seconds=10))  # Asks that are answered, likewise
SESSIONS = 1_024  # actors that one key may have here at a time


class Since(Protocol):
    """The latest changes of the weights."""

    def since(self, version: int) -> Sized | None:
        """Return all changes since `version`; None if `version` is too old, or changes are not sent."""
        ...


class SlotAccounts(Protocol):
    """The slots of shared memory in which weights lie, and the sessions that read them: accounts, without the memory itself."""

    def lend(self, session: bytes, version: int) -> tuple[int, ...]: ...

    def keep(self, session: bytes, version: int) -> None: ...

    def moved_on(self, session: bytes, using: int | None) -> None: ...


@dataclass(frozen=True, slots=True)
class Premises:
    """The place of a coordinator, and the bounds on arrays there.

    run: name of the run, for the Welcome. host: name of the coordinator's machine and its boot. local: users whose claims about
    machine and process are believed. shares: handle of the weights' shared memory, () if there is none. layouts: digest of a
    layout -> bytes of a contribution's arrays. inline: most bytes of arrays that go with their message. whole: weights always
    go whole, never as changes. room: most bytes of contributions fetched and not yet folded in.
    job: digest of the job, as in Hello; "": none. strict: an actor that tells another digest is refused. threads: threads
    that the run's processes compute with; 0: an actor with another number is not told of. runs: contributions may be runs of
    bytes, of any length (Layout.run).
    """

    run: str
    host: str
    local: Container[str]
    shares: tuple[int, ...]
    layouts: Mapping[str, int]
    inline: int
    whole: bool
    room: int
    job: str = ""
    strict: bool = False
    threads: int = 0
    runs: bool = False


class Traffic:
    """The traffic around a core. deliveries: contributions on their way in, one for each task; `_let_go` alone ends them."""

    def __init__(
        self, core: Core, premises: Premises, slots: SlotAccounts, version: int, weights: Sized, lately: Since
    ) -> None:
        self.core, self.premises, self.slots = core, premises, slots
        self.figures = Figures(premises.local)
        self._greets, self._asks = tuple(map(Buckets, GREETS)), tuple(map(Buckets, ASKS))
        self._returns, self._known = Buckets(RETURNS), OrderedDict[bytes, str]()  # session -> key that it had a place under
        self._owed = {lease.session for lease in core.facts.ledger.promises()}  # sessions with promises, that are not back
        self.receiving, self.serving, self.lanes = Receiving(premises.room), Serving(), Lanes()
        self.deliveries: dict[TaskName, Delivery] = {}
        self.sharers: set[bytes] = set()  # sessions of this machine that were offered shared memory
        self.read: set[tuple[int, ...]] = set()  # slots of actors' shared memory that the learner reads
        self.pids: dict[int, bytes] = {}  # process number of an actor of this machine -> its connection
        self.judged: Delivery | None = None  # delivery that the core is asked about now
        self._then: deque[Event] = deque()  # events to handle next
        self._differed: deque[bytes] = deque(maxlen=DIFFERED)  # sessions whose difference was told
        self._takes: Mapping[type[Any], Callable[[Any], Sequence[Deed]]] = {
            events.Heard: self._hear,
            events.Tick: self._tick,
            events.Folded: self._over,
            events.Unfit: self._over,
            deeds.Opened: self._opened,
            deeds.Stored: self._stored,
            events.Lost: self._lost,
            deeds.Ended: self._ended,
        }
        self._hears: Mapping[type[Any], Callable[[Any, Any], Sequence[Deed]]] = {
            Hello: self._greeted,
            Ask: self._asked,
            Contribute: self._claimed,
            Have: self._arrived,
            Want: self._on_lane,
            Chunk: self._on_lane,
            Ready: self._on_lane,
        }
        self._of_core: Mapping[type[Any], Callable[[Any], Sequence[Deed]]] = {
            events.SendWeights: self._weights,
            events.Fold: self._fold,
            events.Pull: self._pull,
            events.Unpull: self._unpull,
            events.Admit: self._admit,
            events.SendTask: self._send_task,
            events.Gone: self._gone,
        }
        self.publish(version, weights, lately)

    def publish(self, version: int, weights: Sized, lately: Since) -> None:
        """Send these weights from now on, whole or as their latest changes."""
        self.version, self.weights, self.lately = version, weights, lately
        self.serving.publish(version)

    def due(self, now: float) -> bool:
        """Return whether a Tick would change anything now: the core's next look is due, or arrays are being fetched."""
        return now >= self.core.look_at or not self.receiving.idle

    def handle(self, event: Happening, now: float) -> Sequence[Deed]:
        """Take an event, the one way in. Return the deeds, in order. `now` is in seconds of a clock that never goes back."""
        self.now = now
        take = self._takes.get(type(event), self._decide)
        doing = take(event)
        while self._then:
            doing = [*doing, *self.handle(self._then.popleft(), now)]
        return doing

    def _hear(self, event: events.Heard) -> Sequence[Deed]:
        message = event.envelope.message
        hear = self._hears.get(type(message))
        return self._decide(event) if hear is None else hear(event, message)

    def _decide(self, event: Event) -> list[Deed]:
        """Hand an event to the core; return its effects, or the deeds that Traffic makes of them."""
        doing: list[Deed] = []
        for effect in self.core.handle(event, self.now):
            if of_core := self._of_core.get(type(effect)):
                doing.extend(of_core(effect))
            else:
                doing.append(effect)
        return doing

    def _greeted(self, event: events.Heard, hello: Hello) -> Sequence[Deed]:
        """Take a Hello, each of which may cost a Welcome, weights and tasks, within the bounds of its key and connection. The
        first Hello of a session that a promise is of needs no room there: after a restart all come within `back` seconds. Nor
        does one in 20 s of a session that had a place in this life: after a cut of a link all come at once."""
        if event.user in self.premises.local:
            return self._same_as_here(event, hello)
        actors = self.core.facts.roster.actors
        fits = event.envelope.session in self._owed or self._returned(event) or self._within(self._greets, event)
        self._owed.discard(event.envelope.session)
        if fits and event.envelope.session not in actors:
            fits = sum(actor.user == event.user for actor in actors.values()) < SESSIONS
        if fits:
            return self._same_as_here(event, hello)
        most = (
            f"{GREETS[0].messages:g} a second over a connection, {GREETS[1].messages:g} of a key; {SESSIONS:,} actors of a key"
        )
        return (Report("budget", f"dropped a Hello: key {event.user[:8]} says it more often than it may ({most})", "warning"),)

    def _returned(self, event: events.Heard) -> bool:
        session = event.envelope.session
        return self._known.get(session) == event.user and self._returns.take(session.hex(), 0, self.now)

    def _within(self, buckets: Sequence[Buckets], event: events.Heard) -> bool:
        """Return whether a message is within the budgets of its connection and of its key."""
        return buckets[0].take(event.peer.hex(), 0, self.now) and buckets[1].take(event.user, 0, self.now)

    def _asked(self, event: events.Heard, ask: Ask) -> Sequence[Deed]:
        """Answer a monitor, also after the end of the run. A monitor that asks too often is not answered."""
        if event.user not in self.premises.local and not self._within(self._asks, event):
            return ()
        return (deeds.Describe(event.peer, event.envelope.session),)

    def _same_as_here(self, event: events.Heard, hello: Hello) -> Sequence[Deed]:
        """Take a Hello that may be answered; say so if its actor has another job, another Shoal or another number of threads.
        Refuse it for the first two if the coordinator is strict."""
        session, ours = event.envelope.session, self.premises
        if session in self.core.facts.roster.actors:
            return self._decide(event)
        name, told = printable(hello.name, 64), list[Deed]()
        if hello.threads > 0 < ours.threads != hello.threads:
            its = f"{name} computes with {hello.threads} threads, and the run with {ours.threads}"
            remedy = f"the weights may have other bits; set OMP_NUM_THREADS={ours.threads} where it starts"
            told.append(Report("threads", f"{its}: {remedy}", "warning"))
        if not (hello.job and ours.job and hello.job != ours.job):
            return (*told, *self._decide(event))
        its = f"its digest is {printable(hello.job, 8)}, and the coordinator's is {ours.job[:8]}"
        what = f"the actor's job file or its version of Shoal differs from the coordinator's: {its}"
        if session not in self._differed:  # an actor says Hello until it is answered
            self._differed.append(session)
            told.append(Report("differs", f"{name}: {what}", "warning"))
        if not ours.strict:
            return (*told, *self._decide(event))
        return (*told, events.Send(event.peer, Envelope(session, self.core.facts.epoch, Refused(what, final=True))))

    # Contributions

    def _claimed(self, event: events.Heard, message: Contribute) -> Sequence[Deed]:
        """Take a contribution, without the figures that are no good."""
        sound, fault = self.figures.sound(message, event.user)
        if not fault:
            return self._contributed(event, message)
        actor = self.core.facts.roster.at(event.peer)
        report = Report("figures", f"{actor.name if actor else 'an actor'}: dropped a figure: {fault}", "warning")
        return (report, *self._contributed(replace(event, envelope=replace(event.envelope, message=sound)), sound))

    def _contributed(self, event: events.Heard, message: Contribute) -> Sequence[Deed]:
        if not message.slot:
            return self._offered(event, message)
        offered = self._speaks(event) and event.envelope.session in self.sharers
        if offered and message.slot not in self.read:
            return (deeds.Open(event, message),)
        fault = "shared memory: that slot is with the learner" if offered else "arrays in shared memory, where none was offered"
        return self._offered(replace(event, arrays=None, fault=fault), message)

    def _opened(self, opened: deeds.Opened) -> Sequence[Deed]:
        event, message = replace(opened.asked.heard, arrays=opened.arrays, fault=opened.fault), opened.asked.message
        if not opened.fault:
            self.slots.moved_on(event.envelope.session, message.made_from)
        return self._offered(event, message)

    def _offered(self, event: events.Heard, message: Contribute) -> Sequence[Deed]:
        """Judge a contribution whose arrays are here, wait to be fetched, or have a fault."""
        session, arrays = event.envelope.session, event.arrays
        waits = message.nbytes > 0 and arrays is None
        nbytes = message.nbytes if waits else 0 if arrays is None else arrays.nbytes
        if fault := event.fault or self._fault(message, nbytes):
            event = replace(event, fault=fault)
        elif waits:
            event = replace(event, whole=False)
            delivery = self.deliveries.get(message.task)
            if delivery is not None and delivery.answers(session, message):
                return self._judge(event, delivery)
        return self._judge(event, Delivery(session, message, arrays))

    def _fault(self, message: Contribute, nbytes: int) -> str:
        """Return the fault of a contribution's layout or number of bytes, "" if there is none."""
        if not message.layout:
            return "arrays without a layout" if nbytes else ""
        layouts = self.premises.layouts
        if self.premises.runs and (expected := run_of(message.layout)) is not None:
            return "" if nbytes == expected else f"{nbytes} bytes of arrays where its layout has {expected}"
        if message.layout not in layouts:
            known = ", ".join(layouts)
            return f"layout {message.layout!a} is none of this run's ({known}): the actor runs another model or environment"
        fits = nbytes == layouts[message.layout]
        return "" if fits else f"{nbytes} bytes of arrays where its layout has {layouts[message.layout]}"

    def _judge(self, event: events.Heard, delivery: Delivery) -> Sequence[Deed]:
        """Ask the core about a delivery, which then goes to the learner, is fetched, or is let go of."""
        self.judged = delivery
        doing = self._decide(event)
        self.judged = None
        if delivery.state == "announced" or (event.whole and delivery.state != "folding"):
            doing.extend(self._let_go(delivery))
        return doing

    def _fold(self, effect: events.Fold) -> Sequence[Deed]:
        delivery = self.judged
        assert delivery is not None  # the core folds the delivery that it was just asked about
        before = self._put(delivery)
        delivery.state, delivery.lag = "folding", effect.onto - effect.message.made_from
        self.read.add(delivery.message.slot)
        if not effect.task.counts:
            self._then.append(events.Folded(delivery.task))  # it goes to the statistics alone
        return (*before, effect)

    def _pull(self, effect: events.Pull) -> Sequence[Deed]:
        message, delivery = effect.message, self.deliveries.get(effect.message.task)
        if delivery is not None and delivery.answers(effect.session, message):
            return ()  # the delivery is on its way
        judged = self.judged
        delivery = judged if judged is not None and judged.message is message else Delivery(effect.session, message)
        before = self._put(delivery)
        self.receiving.pull(delivery)
        return before

    def _put(self, delivery: Delivery) -> Sequence[Deed]:
        """Make this the delivery of its task, and let go of an earlier one."""
        before = self.deliveries.get(delivery.task)
        doing = () if before is delivery else self._let_go(before)
        self.deliveries[delivery.task] = delivery
        return doing

    def _unpull(self, effect: events.Unpull) -> Sequence[Deed]:
        return self._let_go(self.deliveries.get(effect.task))

    def _over(self, event: events.Folded | events.Unfit) -> Sequence[Deed]:
        """Let go of a delivery that the learner has folded in or refused, and tell the core."""
        return (*self._let_go(self.deliveries.get(event.task)), *self._decide(event))

    def _let_go(self, delivery: Delivery | None) -> Sequence[Deed]:
        """End a delivery: the one place where a delivery ends."""
        if delivery is None or delivery.state == "gone":
            return ()
        if delivery.pulled:
            self.receiving.drop(delivery)
        if delivery.state == "folding":
            self.read.discard(delivery.message.slot)
        if self.deliveries.get(delivery.task) is delivery:
            del self.deliveries[delivery.task]
        delivery.state = "gone"
        return (deeds.LetGo(delivery),) if delivery.arrays is not None and (delivery.fetch or delivery.message.slot) else ()

    # Arrays in pieces

    def _speaks(self, event: events.Heard) -> bool:
        """Return whether the message's session has a place here, and speaks over this connection with its own key."""
        actor, envelope = self.core.facts.roster.at(event.peer), event.envelope
        mine = actor is not None and (actor.session, actor.user) == (envelope.session, event.user)
        return mine and envelope.epoch == self.core.facts.epoch

    def _on_lane(self, event: events.Heard, message: Want | Chunk | Ready) -> Sequence[Deed]:
        """Take a message on a line for arrays, which is known only by its session and key."""
        session, peer = event.envelope.session, event.peer
        actor = self.core.facts.roster.actors.get(session)
        if actor is None or actor.user != event.user or event.envelope.epoch != self.core.facts.epoch:
            return ()  # the session gets its answer on its other line
        if isinstance(message, Ready) or session not in self.lanes.by_session:
            self.lanes.take(session, peer)
        match message:
            case Want((_,) | (_, _)):
                return self._wanted(peer, session, message)
            case Want((_, _, _)):
                return self._brief_wanted(peer, session, message)
            case Chunk():
                return self._came(session, message, event.arrays)
            case Ready():
                self.receiving.cut(session)
        return ()

    def _wanted(self, peer: bytes, session: bytes, want: Want) -> Sequence[Deed]:
        if (arrays := self.serving.wanted(session, want.what, want.first, want.last)) is None:
            return self._decide(events.Outdated(session, want.what[0]))
        return (*self._decide(events.Carried(session)), self._piece(peer, session, want, arrays))

    def _piece(self, peer: bytes, session: bytes, want: Want, arrays: Sized) -> deeds.Ship:
        """Return the deed that sends a piece. The session asks again for a piece that does not arrive."""
        chunk = Chunk(want.what, want.first, want.last)
        return deeds.Ship(peer, Envelope(session, self.core.facts.epoch, chunk), arrays, want.first, want.last)

    def _came(self, session: bytes, chunk: Chunk, piece: Sized | None) -> Sequence[Deed]:
        nbytes = 0 if piece is None else piece.nbytes
        delivery = self.receiving.came(session, chunk, self.now) if nbytes == chunk.last - chunk.first else None
        if delivery is None:
            return self._decide(events.Carried(session))
        if piece is None or not nbytes:
            return self._stored(deeds.Stored(delivery))
        return (deeds.Store(delivery, chunk.first, piece),)

    def _stored(self, stored: deeds.Stored) -> Sequence[Deed]:
        delivery, trouble = stored.delivery, stored.trouble
        session, actor, fetch = delivery.session, self.core.facts.roster.actors[delivery.session], delivery.fetch
        assert fetch is not None  # the delivery's arrays were asked for
        if trouble:  # a repeated Contribute is fetched anew
            report = Report("disk", f"{trouble}: a contribution of {actor.name} waits until there is room", "error")
            return (*self._let_go(delivery), *self._decide(events.Carried(session)), report)
        moved = self._decide(events.Carried(session, delivery.task, fetch.left))
        if delivery.state != "here":
            return moved
        envelope = Envelope(session, self.core.facts.epoch, delivery.message)
        return (*moved, *self._judge(events.Heard(actor.peer, envelope, user=actor.user), delivery))

    def _tick(self, event: events.Tick) -> Sequence[Deed]:
        doing = self._decide(event)
        if self.receiving.idle:
            return doing
        lease = self.core.facts.bounds.stall
        for task in self.receiving.stalled(self.now - lease) if lease else ():
            doing.extend(self._decide(events.Stalled(task)))
        wants, in_vain = self.receiving.ask(self.now, self.core.facts.starves())
        for session in in_vain:
            self.lanes.forget(session)  # pieces asked for on this line have not come: ask on the other line
        for session, want in wants:  # a Want goes by the connection of its Chunk, whose end is the end of both
            peer = self.lanes.by_session.get(session) or self.core.facts.roster.actors[session].peer
            doing.append(events.Send(peer, Envelope(session, self.core.facts.epoch, want)))
        return doing

    # Weights

    def _weights(self, wanted: events.SendWeights) -> Sequence[Deed]:
        """Tell a session the newest weights: their number alone if it has them, or their place in shared memory."""
        session, kept = wanted.session, self.core.facts.kept
        shares = session in self.sharers
        if wanted.same:
            if shares:
                self.slots.keep(session, self.version)
            weights = Weights(self.version, base=wanted.held, kept=kept)
        elif shares and (slot := self.slots.lend(session, self.version)):
            weights = Weights(self.version, slot, kept=kept)
        else:
            return self._by_socket(wanted)
        return (events.Send(wanted.peer, Envelope(session, self.core.facts.epoch, weights)),)

    def _by_socket(self, wanted: events.SendWeights) -> Sequence[Deed]:
        """Send the newest weights by the socket; as changes if the session holds a version that is recent enough."""
        session = wanted.session
        base, arrays = wanted.held, None if self.premises.whole else self.lately.since(wanted.held)
        if arrays is None:
            base, arrays = WHOLE, self.weights
        nbytes = arrays.nbytes
        fetched = nbytes > self.premises.inline
        if fetched:
            self.serving.begin(session, (self.version,) if base == WHOLE else (self.version, base), arrays)
        weights = Weights(self.version, (), nbytes if fetched else 0, base, self.core.facts.kept)
        envelope = Envelope(session, self.core.facts.epoch, weights)
        return (events.Send(wanted.peer, envelope) if fetched else deeds.Ship(wanted.peer, envelope, arrays, 0, nbytes),)

    def _arrived(self, event: events.Heard, have: Have) -> Sequence[Deed]:
        session = event.envelope.session
        if self._speaks(event):
            self.serving.end(session, have.version)
            if session in self.sharers:
                self.slots.moved_on(session, have.using)
        return self._decide(event)

    # Briefs

    def _send_task(self, effect: events.SendTask) -> Sequence[Deed]:
        assign, arrays = effect.envelope.message, effect.arrays
        assert isinstance(assign, Assign)
        if arrays.nbytes > self.premises.inline:
            return (events.Send(effect.peer, effect.envelope),)
        self._then.append(events.Carried(b"", assign.task))
        return (deeds.Ship(effect.peer, replace(effect.envelope, message=replace(assign, nbytes=0)), arrays, 0, arrays.nbytes),)

    def _brief_wanted(self, peer: bytes, session: bytes, want: Want) -> Sequence[Deed]:
        """Send a piece of a brief to the session that has the task. The brief of a cancelled task cannot be had."""
        task = (want.what[0], want.what[1])
        lease = self.core.facts.ledger.leases.get(task)
        mine = lease is not None and (lease.session, lease.attempt) == (session, want.what[2])
        arrays = lease.brief.arrays if lease and mine and lease.brief else None
        if arrays is None or not 0 <= want.first <= want.last <= min(arrays.nbytes, want.first + MOST):
            return self._decide(events.Carried(session))
        moved = self._decide(events.Carried(session, task, arrays.nbytes - want.last))
        return (*moved, self._piece(peer, session, want, arrays))

    # Sessions

    def _admit(self, admit: events.Admit) -> Sequence[Deed]:
        core, hello, session = self.core, admit.hello, admit.session
        actor = core.facts.roster.actors[session]
        here = actor.user in self.premises.local and hello.host == self.premises.host
        if actor.user not in self.premises.local:
            self._known[session] = actor.user
            self._known.move_to_end(session)
            if len(self._known) > KNOWN:
                self._known.popitem(last=False)
        if here:
            self.pids[hello.pid] = admit.peer
        shares = self.premises.shares if here and "shm" in hello.offers else ()
        if shares:
            self.sharers.add(session)
        if admit.resumed and session not in self.lanes.by_session:
            self.receiving.cut(session)
        bounds, many = core.facts.bounds, len(core.facts.roster)
        beat, patience = bounds.beat_for(many), bounds.patience_for(many)
        place = (hello.greeting, admit.resumed, bounds.retain)
        welcome = Welcome(self.premises.run, admit.number, beat, patience, self.premises.host, shares, *place)
        return (deeds.Greet(admit.peer, Envelope(session, core.facts.epoch, welcome)),)

    def _lost(self, event: events.Lost) -> Sequence[Deed]:
        self.lanes.lost(event.peer)
        return self._decide(event)

    def _ended(self, ended: deeds.Ended) -> Sequence[Deed]:
        peer = self.pids.pop(ended.pid, None)
        return self._lost(events.Lost(peer, f"ended (process {ended.pid})", dead=True, ran=ended.ran)) if peer else ()

    def _gone(self, gone: events.Gone) -> Sequence[Deed]:
        """Forget a session, but for its deliveries that are with the learner."""
        self.lanes.forget(gone.session)
        self.receiving.gone(gone.session)
        self.serving.end(gone.session, None)
        self.slots.moved_on(gone.session, None)
        self.sharers.discard(gone.session)
        return ()
