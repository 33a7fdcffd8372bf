"""The deciding half of a coordinator: events in, effects out. No sockets, no arrays, no clock, no torch.

The one idea: facts change in `_take`; the rules that must hold after *any* event stand once, in `_settle`: step if the
plan says enough, send new weights to actors that hold old ones, give idle actors tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from shoal.coordinator.deciding import desk, membership, patience
from shoal.coordinator.deciding.claims import amiss
from shoal.coordinator.deciding.events import (
    Briefed,
    Effect,
    Event,
    Finish,
    Fold,
    Folded,
    Heard,
    Interrupt,
    Kept,
    Lost,
    Moved,
    Nudge,
    Outdated,
    Pull,
    Send,
    SendWeights,
    Stalled,
    Step,
    Stepped,
    Tick,
    Unfit,
)
from shoal.coordinator.deciding.farewell import Farewell
from shoal.coordinator.deciding.ledger import Coming, Lease, Ledger
from shoal.coordinator.deciding.plans import Plan, Seats
from shoal.coordinator.deciding.promises import ANY, Promise
from shoal.coordinator.deciding.roster import Actor, Roster
from shoal.coordinator.deciding.rules import Goal, Rules
from shoal.coordinator.deciding.verdicts import Verdicts
from shoal.coordinator.reports import Report
from shoal.protocol.errors import printable
from shoal.protocol.fetching import to_go
from shoal.protocol.messages import (
    Beat,
    Bye,
    Contribute,
    Envelope,
    Failed,
    Have,
    Hello,
    Message,
    Refused,
    Stop,
    TaskName,
    Verdict,
)

NOTHING = Coming()
LOOK = 0.05  # shortest time between two Ticks that are acted on, in seconds: no rule needs a shorter one


class Core:
    """The deciding half. A restart hands in the recovered `version`, `steps`, `drawn`, `folded` (clients folded in after
    `version`), `kept` (newest version in a snapshot, -1 if none) and `promises`; `epoch` is larger at every restart."""

    def __init__(
        self,
        plan: Plan,
        goal: Goal,
        rules: Rules,
        *,
        version: int = 0,
        steps: int = 0,
        drawn: int = 0,
        folded: int = 0,
        epoch: int = 1,
        kept: int = -1,
        promises: Sequence[Promise] = (),
        now: float = 0.0,
    ) -> None:
        self.plan, self.goal, self.rules = plan, goal, rules
        self.version, self.steps, self.drawn, self.epoch, self.kept = version, steps, drawn, epoch, kept
        self.since = version  # version whose step last changed the weights
        self.roster = Roster(rules.ahead, rules.most)
        self.seats = Seats(0, self.roster.seats)
        self.ledger = Ledger(folded={version: folded} if folded else {}, verdicts=Verdicts(self.roster.most))
        self.stepping = False
        self.reached = not folded and goal.reached(version, steps)  # an earlier life reached the goal, and could not say so
        self.back_by = now + rules.back
        self.ends_at = self.back_by if self.reached else now
        for promise in promises:
            self.ledger.promise(promise, now)
        self.ended = False
        self.farewell = Farewell()
        self.gathering = rules.gather > 0
        self.now = self.began = self.moved_at = self.complained_at = self.look_at = now

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take an event, the one way in. Return the effects, in order. `now` is in seconds of a clock that never goes back."""
        if self.ended:
            return self.farewell.answer(event)
        if type(event) is Tick:
            if now < self.look_at:
                return []
            self.look_at = now + LOOK
        self.now = now
        return [*self._take(event), *(() if _sign_of_life(event) else self._settle())]

    # Events

    def _take(self, event: Event) -> Iterable[Effect]:
        match event:
            case Heard():
                return self._hear(event)
            case Folded(task):
                return self._folded(task)
            case Moved(session, task, left):
                return self._moved(session, task, left)
            case Tick():
                return patience.tick(self)
            case Stepped(version, _, moved):
                return self._advance(version, moved)
            case Kept(version):
                self.kept = version
                return ()
            case Unfit(task, reason):
                return self._unfit(task, reason)
            case Briefed():
                return desk.briefed(self, event)
            case Outdated(session, version):
                if actor := self.roster.actors.get(session):
                    self.roster.outdate(actor, version)
                return ()
            case Stalled(task):
                return self._stalled(task)
            case Lost(peer, why, dead):
                return self._lost(peer, why, dead)
            case Nudge():
                return ()
            case Interrupt(reason):
                return self.end(reason, failed=False)

    def _hear(self, event: Heard) -> Iterable[Effect]:
        envelope = event.envelope
        actor = self.roster.actors.get(envelope.session)
        if actor is not None and actor.user != event.user:
            who = f"key {event.user[:8]} spoke for {actor.name}, whose key is {actor.user[:8]}"
            no = self.refusal(event.peer, envelope.session, "that session is another key's", final=False)
            return (no, Report("access", who, "warning"))
        if isinstance(envelope.message, Hello):
            return membership.greet(self, event, envelope.message, actor)
        if actor is None or actor.peer != event.peer or envelope.epoch != self.epoch:
            return (self.refusal(event.peer, envelope.session, "not of this run: say Hello", final=False),)
        self.roster.hear(actor, self.now)
        actor.spoke = True
        return self._listen(actor, envelope.message, event)

    def _listen(self, actor: Actor, message: Message, event: Heard) -> Iterable[Effect]:
        match message:
            case Contribute():
                patience.unstick(self, actor)
                return self._contributed(actor, message, event.fault, event.whole)
            case Beat(progress):
                actor.progress = max(actor.progress, progress)
                return ()
            case Have(version):
                self.roster.arrived(actor, version, self.version)
                return ()
            case Failed():
                patience.unstick(self, actor)
                return self._failed(actor, message)
            case Bye(reason):
                return membership.part(self, actor, f"left: {printable(reason, 200)}")
            case _:
                return self._misspoke(actor, f"{actor.name} said {type(message).__name__}, which actors do not say")

    def _misspoke(self, actor: Actor, what: str) -> Iterator[Effect]:
        yield Report("protocol", what, "warning")
        yield from patience.strike(self, actor, what)

    def _moved(self, session: bytes, task: TaskName | None, left: int) -> Iterable[Effect]:
        """Record that some of an actor's arrays came, or went to it; `left` bytes of the task's arrays are to come."""
        if actor := self.roster.actors.get(session):
            self.roster.hear(actor, self.now)
        if task and (lease := self.ledger.leases.get(task)) and (lease.pulled or lease.brief) and left < lease.left:
            lease.left, self.moved_at = left, self.now
            if not lease.pulled:
                self.ledger.renew(lease, self.now)
        return ()

    def _stalled(self, task: TaskName) -> Iterable[Effect]:
        lease = self.ledger.leases.get(task)
        if lease is None or not lease.pulled:
            return ()
        its = self.roster.actors[lease.session].name
        why = f"nothing came of its arrays from {its} for {self.rules.lease:g} s, {to_go(lease.left, lease.nbytes)}"
        return patience.overdue(self, lease, why)

    def _lost(self, peer: bytes, why: str, dead: bool) -> Iterator[Effect]:
        if actor := self.roster.at(peer):
            yield from membership.lose(self, actor, why, dead)
        if dead:
            self.farewell.dead(peer)

    # Contributions

    def _contributed(self, actor: Actor, message: Contribute, fault: str, whole: bool) -> Iterator[Effect]:
        lease = self._lease(actor, message)
        if lease is None:
            self.ledger.counts.heard += 1
            yield self._repeat(actor, message)
        elif lease.folding:  # the verdict on this attempt is on its way
            self.ledger.counts.heard += whole
            self.ledger.counts.duplicate += whole
        elif why := fault or amiss(lease, message, actor.sent, self.rules):
            self.ledger.counts.heard += 1
            yield from self._refuse(actor, lease, why)
        elif why := self._late_for(lease, message, onto := self._onto_for(lease)):
            self.ledger.counts.heard += 1
            yield from desk.end(self, lease)
            self.ledger.note(lease, "stale", self.now, message.totals)
            yield from self._judge(actor, lease, "stale", why)
        else:
            yield from self._take_in(actor, lease, message, onto) if whole else self._fetch(actor, lease, message)

    def _fetch(self, actor: Actor, lease: Lease, message: Contribute) -> Iterator[Effect]:
        if lease.promise and (self.reached or lease.promise.onto > self.version):
            lease.offered = message  # fetched when its version is there: until then the arrays would take up room
            return
        if not lease.pulled:
            lease.pulled, lease.nbytes, lease.left = True, message.nbytes, message.nbytes
        lease.offered = None
        yield Pull(actor.session, message)

    def _take_in(self, actor: Actor, lease: Lease, message: Contribute, onto: int) -> Iterator[Effect]:
        self.ledger.counts.heard += 1
        lease.done = message
        self._pace(actor, message)
        self.ledger.take(lease, onto)
        self.moved_at = self.now
        yield from desk.unbrief(lease)
        yield Fold(lease.task, lease.clients, message, onto, lease.session, lease.promise is not None)

    def _onto_for(self, lease: Lease) -> int:
        """Return the version that a lease's contribution builds on: for a promise, the version it was accepted for."""
        if not lease.counts:
            return self.version
        if lease.promise and lease.promise.onto != ANY:
            return lease.promise.onto
        return self._onto()

    def _late_for(self, lease: Lease, message: Contribute, onto: int) -> str:
        """Return why a contribution is too old, "" if it is not. A promised contribution is never too old."""
        late = lease.counts and not lease.promise and not self.plan.admits(message.made_from, onto)
        return f"made from version {message.made_from}, {onto - message.made_from} behind" if late else ""

    def _pace(self, actor: Actor, message: Contribute) -> None:
        """Let an actor whose tasks are short hold more of them, so that they last until the answer to the first is back."""
        took = min(max(message.trained, 1e-6), 1e6)
        actor.pace = took if actor.pace < 0 else 0.9 * actor.pace + 0.1 * took
        wanted = max(self.rules.ahead, min(self.roster.most, 1 + int(self.rules.stock / actor.pace)))
        if wanted != actor.capacity and not actor.idles:
            self.roster.allow(actor, wanted)

    def _lease(self, actor: Actor, message: Contribute | Failed) -> Lease | None:
        """Return the lease that a message answers, of this actor and this attempt; None if there is none."""
        lease = self.ledger.leases.get(message.task)
        mine = lease is not None and lease.session == actor.session and lease.attempt == message.attempt
        return lease if mine and lease is not None and not lease.briefing else None

    def _onto(self) -> int:
        """Return the version that a contribution which comes now builds on: the first that is not full."""
        onto = self.version + self.stepping
        while self._full(onto):
            onto += 1
        return onto

    def _full(self, onto: int) -> bool:
        """Return whether the contributions folded in or with the learner are enough for the step after `onto`."""
        coming = self.ledger.coming.get(onto, NOTHING)
        clients = self.ledger.folded.get(onto, 0) + coming.clients
        return clients > 0 and self.plan.enough(clients, self.ledger.outstanding(onto, coming.leases), onto, self.now)

    def _repeat(self, actor: Actor, message: Contribute) -> Effect:
        """Answer a contribution whose lease is gone: the same verdict as the first time, or stale."""
        if self.ledger.verdicts.on(actor.session, message):
            self.ledger.counts.duplicate += 1
        else:
            self.ledger.counts.stale += 1
        return self._again(actor, message)

    def _again(self, actor: Actor, message: Contribute | Failed) -> Effect:
        """Repeat the verdict on an attempt; if that is forgotten, say stale."""
        over = Verdict(message.task, message.attempt, "stale", "this attempt is over")
        return self.say(actor, self.ledger.verdicts.on(actor.session, message) or over)

    def _refuse(self, actor: Actor, lease: Lease, why: str) -> Iterator[Effect]:
        yield from self._judge(actor, lease, "refused", why)
        yield from desk.take_back(self, lease, why, "refused")
        yield from patience.strike(self, actor, why)

    def _judge(self, actor: Actor, lease: Lease, word: str, reason: str) -> Iterator[Effect]:
        verdict = self._verdict(lease, word, reason)
        self.ledger.judge(actor.session, verdict)
        desk.unburden(self, actor, lease.name)
        if word != "accepted":
            yield Report(word, f"{actor.name}: task {lease.name} {word}: {reason}", "warning")
        yield self.say(actor, verdict)

    def _folded(self, task: TaskName) -> Iterator[Effect]:
        lease = self.ledger.leases[task]
        self.ledger.count(lease)
        self.moved_at = self.now
        if lease.done:
            self.steps += lease.done.steps * lease.counts
            self.ledger.note(lease, "accepted", self.now, lease.done.totals)
        if actor := self.roster.actors.get(lease.session):
            actor.strikes = actor.barred = 0
            yield from self._judge(actor, lease, "accepted", "")
        else:
            self.ledger.judge(lease.session, self._verdict(lease, "accepted", ""))

    def _verdict(self, lease: Lease, word: str, reason: str) -> Verdict:
        keeps = word == "accepted" and lease.counts and self.rules.retain
        return Verdict(lease.name, lease.attempt, word, reason, lease.onto if keeps else -1)

    def _unfit(self, task: TaskName, reason: str) -> Iterator[Effect]:
        lease = self.ledger.leases[task]
        self.ledger.untake(lease)
        if actor := self.roster.actors.get(lease.session):
            yield from self._refuse(actor, lease, reason)
        else:
            self.ledger.counts.refused += 1
            yield from desk.take_back(self, lease, reason, "refused")

    def _failed(self, actor: Actor, message: Failed) -> Iterator[Effect]:
        lease = self._lease(actor, message)
        if lease is None or lease.folding:
            yield self._again(actor, message)
            return
        self.ledger.counts.failed += 1
        desk.unburden(self, actor, lease.name)
        stage, error = printable(message.stage, 64), printable(message.error, 1_000)
        where = f"{actor.name}: client {message.client} failed in {stage}: {error}"
        trace = "\n".join(printable(line, 500) for line in message.traceback.split("\n"))
        yield Report("failed", f"{where}\n{trace}".rstrip(), "error")
        self.ledger.verdicts.remember(actor.session, Verdict(lease.name, lease.attempt, "refused", "failed"))
        yield self._again(actor, message)
        yield from desk.take_back(self, lease, error, "failed")
        yield from patience.strike(self, actor, f"failed in {stage}: {error}")

    # Versions

    def _advance(self, version: int, moved: bool) -> Iterator[Effect]:
        self.ledger.folded.pop(self.version, None)
        self.version = version
        self.since = version if moved else self.since
        self.stepping = False
        self.moved_at = self.now
        self.roster.fall_behind()
        self.ledger.reach(version)
        self.ledger.verdicts.forget(self.kept)
        yield from desk.close(self)
        for lease in self.ledger.promises(upto=version):
            if lease.offered and (actor := self.roster.actors.get(lease.session)):
                yield from self._fetch(actor, lease, lease.offered)
        self.reached = self.goal.reached(self.version, self.steps)

    def end(self, reason: str, *, failed: bool) -> Iterator[Effect]:
        if not self.ended:
            self.ended = True
            for actor in self.roster.actors.values():
                yield self.say(actor, Stop(reason))
            self.farewell.begin(Stop(reason), self.epoch, self.roster.actors, self.now)
            yield Finish(reason, failed)

    def starves(self) -> bool:
        """Return whether the learner makes no step and holds none for the next; it may hold contributions for later ones."""
        return not self.stepping and self.version not in self.ledger.coming

    # Rules that hold after any event

    def _settle(self) -> Iterator[Effect]:
        if self.reached and self.now >= self.ends_at:
            yield from self.end("done", failed=False)
        if not self.ended and not self.reached:
            yield from self._step()
            for actor in self.roster.refresh(self.version) if self.roster.behind else ():
                yield SendWeights(actor.peer, actor.session, self.version, actor.held, actor.held >= self.since)
            if self.roster.room or desk.stalls(self):
                yield from desk.employ(self)
            if self.ledger.counts.aside:
                yield from self._despair()

    def _step(self) -> Iterator[Effect]:
        """Step if the plan has enough, once the learner has folded in every contribution to this step."""
        if not self.starves() or self.ledger.promised[self.version]:
            return
        folded, outstanding = self.ledger.folded.get(self.version, 0), self.ledger.outstanding(self.version)
        if self.plan.enough(folded, outstanding, self.version, self.now):
            self.stepping, following = True, self.version + 1
            yield Step(following, self.steps, self.drawn, self.goal.reached(following, self.steps))

    def _despair(self) -> Iterator[Effect]:
        """End a run whose round has lost every task and can neither step nor give out more: it would wait for ever."""
        if not self.stepping and not self.ledger.outstanding(self.version) and self.roster:
            yield from self.end(f"no contribution to version {self.version + 1} could be had", failed=True)

    # Messages

    def say(self, actor: Actor, message: Message) -> Send:
        if actor.session in self.roster.actors:
            self.roster.say(actor, self.now)
        return Send(actor.peer, Envelope(actor.session, self.epoch, message))

    def refusal(self, peer: bytes, session: bytes, reason: str, *, final: bool) -> Send:
        return Send(peer, Envelope(session, self.epoch, Refused(reason, final)))


def _sign_of_life(event: Event) -> bool:
    """Return whether an event, of the most frequent ones, changes nothing that a rule of `_settle` looks at."""
    match event:
        case Moved():
            return True
        case Heard():
            return isinstance(event.envelope.message, Beat)
        case _:
            return False
