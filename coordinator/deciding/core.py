"""The deciding half of a coordinator: events in, effects out. No sockets, no arrays, no clock, no torch.

The one idea: facts change in `_take`; the rules that must hold after *any* event stand once, in `_settle`: step if the
plan says enough, send new weights to actors that hold old ones, give idle actors tasks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from shoal.coordinator.deciding import contributions, desk, events, membership, patience
from shoal.coordinator.deciding.actor import Actor
from shoal.coordinator.deciding.bounds import Bounds, Goal
from shoal.coordinator.deciding.events import Effect, Event
from shoal.coordinator.deciding.facts import Facts
from shoal.coordinator.deciding.plans import Plan, wakes
from shoal.coordinator.deciding.recovered import Recovered
from shoal.coordinator.reports import Report
from shoal.protocol.errors import printable
from shoal.protocol.fetching import to_go
from shoal.protocol.messages import Beat, Bye, Contribute, Failed, Have, Hello, Message, TaskName

LOOK = 0.05  # seconds between two Ticks that are acted on, at least: no rule needs a shorter time


class Core:
    """The deciding half of a life of the coordinator. found: the state that it goes on from; none: of a run that begins. look:
    shortest time between two Ticks that are acted on, in seconds."""

    def __init__(
        self,
        plan: Plan,
        goal: Goal,
        bounds: Bounds,
        found: Recovered | None = None,
        now: float = 0.0,
        look: float = LOOK,
    ) -> None:
        self.facts = Facts(plan, goal, bounds, found or Recovered(), now)
        self.ends_at = self.facts.back_by if self.facts.reached else now
        self.look, self.look_at = look, now

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take an event, the one way in. Return the effects, in order. `now` is in seconds of a clock that never goes back."""
        facts = self.facts
        if facts.ended:
            return [] if facts.paused else facts.farewell.answer(event)
        if type(event) is events.Tick:
            if now < self.look_at:
                return []
            self.look_at = now + self.look
        facts.now = now
        effects = [*_take(facts, event)]
        if not _settled(facts, event, effects):
            effects.extend(self._settle(facts))
        return effects

    # Rules that hold after any event

    def _settle(self, facts: Facts) -> Iterator[Effect]:
        if facts.reached and facts.now >= self.ends_at:
            yield from _last_weights(facts)
            yield from facts.end("done", failed=False)
        if not facts.ended and not facts.reached:
            if facts.starves():
                yield from _step(facts)
            for actor in facts.roster.refresh(facts.version, facts.bounds.light) if facts.roster.behind else ():
                yield events.SendWeights(actor.peer, actor.session, facts.version, actor.held, actor.held >= facts.since)
            if facts.roster.contributors.room or desk.evaluation(facts) or desk.stalls(facts):
                yield from desk.employ(facts)
            if facts.ledger.counts.aside and not facts.bounds.endless:
                yield from _despair(facts)


def _last_weights(facts: Facts) -> Iterator[Effect]:
    """Tell servers the last version, with which they go on. An actor has no use for it."""
    for actor in facts.roster.refresh(facts.version) if facts.roster.followers else ():
        if actor.follows:
            yield events.SendWeights(actor.peer, actor.session, facts.version, actor.held, actor.held >= facts.since)


def _step(facts: Facts) -> Iterator[Effect]:
    """Step if the plan has enough, once no contribution to this step is promised. The learner has folded in all others."""
    version, ledger = facts.version, facts.ledger
    if ledger.promised.get(version):
        return
    if facts.plan.enough(ledger.folded.get(version, 0), ledger.outstanding(version), version, facts.now):
        facts.stepping, following = True, version + 1
        yield events.Step(following, facts.steps, facts.drawn, facts.goal.reached(following, facts.steps))


def _despair(facts: Facts) -> Iterator[Effect]:
    """End a run whose round has lost every task and can neither step nor give out more: it would wait for ever. A plan that
    wakes later (a client comes back) is waited for."""
    waits = wakes(facts.plan, facts.version, facts.now) < math.inf
    if not waits and not facts.stepping and not facts.ledger.outstanding(facts.version) and facts.roster:
        yield from facts.end(f"no contribution to version {facts.version + 1} could be had", failed=True)


# Events


def _take(facts: Facts, event: Event) -> Iterable[Effect]:
    match event:
        case events.Heard():
            return _hear(facts, event)
        case events.Folded(task):
            return contributions.folded(facts, task)
        case events.Carried(session, task, left):
            return _moved(facts, session, task, left)
        case events.Tick():
            return patience.tick(facts)
        case events.Stepped(version, _, moved):
            return _advance(facts, version, moved)
        case events.Kept(version):
            facts.kept = version
            return ()
        case events.Unfit(task, reason):
            return contributions.unfit(facts, task, reason)
        case events.Briefed():
            return desk.briefed(facts, event)
        case events.Outdated(session, version):
            if actor := facts.roster.actors.get(session):
                facts.roster.outdate(actor, version)
            return ()
        case events.Stalled(task):
            return _stalled(facts, task)
        case events.Lost():
            return _lost(facts, event)
        case events.Pulse():
            return patience.felt(facts, event)
        case events.Nudge():
            return ()
        case events.Withdraw(task):
            return desk.withdraw(facts, task)
        case events.Flag(task, calls):
            return desk.flag(facts, task, calls)
        case events.Dismiss(session, reason):
            return membership.dismiss(facts, session, reason)
        case events.Interrupt(reason, pause):
            return facts.end(reason, failed=False, pause=pause)


def _settled(facts: Facts, event: Event, effects: Sequence[Effect]) -> bool:
    """Return whether an event, of the most frequent ones, changed nothing that a rule of `_settle` looks at: signs of life,
    weights that came to an actor, and a contribution that goes to the learner while another to the same version is there."""
    if type(event) is not events.Heard:
        return type(event) is events.Carried
    kind = type(event.envelope.message)
    if kind is Beat:
        return True
    if facts.roster.behind:
        return False
    taken = kind is Contribute and len(effects) == 1 and type(effects[0]) is events.Fold
    return kind is Have or (taken and not facts.roster.contributors.room and not facts.starves())


def _hear(facts: Facts, event: events.Heard) -> Iterable[Effect]:
    envelope = event.envelope
    actor = facts.roster.actors.get(envelope.session)
    if actor is not None and actor.user != event.user:
        who = f"key {event.user[:8]} spoke for {actor.name}, whose key is {actor.user[:8]}"
        no = facts.refusal(event.peer, envelope.session, "that session is another key's", final=False)
        return (no, Report("access", who, "warning"))
    if isinstance(envelope.message, Hello):
        return membership.greet(facts, event, envelope.message, actor)
    if actor is None or actor.peer != event.peer or envelope.epoch != facts.epoch:
        return (facts.refusal(event.peer, envelope.session, "not of this run: say Hello", final=False),)
    patience.hear(facts, actor)
    actor.spoke = True
    return _listen(facts, actor, envelope.message, event)


def _listen(facts: Facts, actor: Actor, message: Message, event: events.Heard) -> Iterable[Effect]:
    if actor.runs and isinstance(message, Contribute | Failed) and actor.runs == (*message.task, message.attempt):
        actor.runs = ()
    match message:
        case Contribute():
            return contributions.contributed(facts, actor, message, event.fault, event.whole)
        case Beat(progress, runs=runs, told=told):
            actor.progress, actor.runs, actor.told = max(actor.progress, progress), runs, told
            if not runs:  # the task or its brief never came, or the task was cancelled before it began
                patience.unstick(facts, actor)
            elif facts.bounds.briefs:
                _begun(facts, actor, runs)
            return ()
        case Have(version):
            facts.roster.arrived(actor, version, facts.version)
            patience.ready(facts, actor)
            return ()
        case Failed():
            return contributions.failed(facts, actor, message)
        case Bye(reason):
            return membership.part(facts, actor, f"left: {printable(reason, 200)}")
        case _:
            return _misspoke(facts, actor, f"{actor.name} said {type(message).__name__}, which actors do not say")


def _begun(facts: Facts, actor: Actor, runs: tuple[int, ...]) -> None:
    """Record that the brief of the task that the worker is at has arrived. After a cut the coordinator takes the brief of an
    idle actor for lost, and an actor that has all of it asks for no piece."""
    mine = [lease for name in actor.tasks if (*(lease := facts.ledger.leases[name]).name, lease.attempt) == runs]
    for lease in mine:
        if not lease.pulled:
            lease.left = 0


def _misspoke(facts: Facts, actor: Actor, what: str) -> Iterator[Effect]:
    yield Report("protocol", what, "warning")
    yield from patience.strike(facts, actor, what)


def _moved(facts: Facts, session: bytes, task: TaskName | None, left: int) -> Iterable[Effect]:
    """Record that some of an actor's arrays came, or went to it; `left` bytes of the task's arrays are to come."""
    if actor := facts.roster.actors.get(session):
        patience.hear(facts, actor)
    if task and (lease := facts.ledger.leases.get(task)) and (lease.pulled or lease.brief) and left < lease.left:
        lease.left, facts.moved_at = left, facts.now
        if not lease.pulled:
            facts.ledger.renew(lease, facts.now)
    return ()


def _stalled(facts: Facts, task: TaskName) -> Iterator[Effect]:
    """Take back a task whose arrays do not come, which is its actor's fault, or its link's, and not the task's."""
    lease = facts.ledger.leases.get(task)
    if lease is None or not lease.pulled:
        return
    actor = facts.roster.actors[lease.session]
    why = f"nothing came of its arrays from {actor.name} for {facts.bounds.stall:g} s, {to_go(lease.left, lease.nbytes)}"
    yield from patience.overdue(facts, lease, why, blamed=False)
    yield from patience.strike(facts, actor, why)


def _lost(facts: Facts, event: events.Lost) -> Iterator[Effect]:
    if actor := facts.roster.at(event.peer):
        yield from membership.lose(facts, actor, event)
    if event.dead:
        facts.farewell.dead(event.peer)


def _advance(facts: Facts, version: int, moved: bool) -> Iterator[Effect]:
    facts.ledger.folded.pop(facts.version, None)
    facts.version = version
    facts.since = version if moved else facts.since
    facts.stepping = False
    facts.moved_at = facts.now
    facts.roster.fall_behind()
    facts.ledger.reach(version)
    facts.ledger.verdicts.forget(facts.kept)
    yield from desk.close(facts)
    for lease in facts.ledger.promises(upto=version):
        if lease.offered and (actor := facts.roster.actors.get(lease.session)):
            yield from contributions.fetch(facts, actor, lease, lease.offered)
    facts.reached = facts.goal.reached(facts.version, facts.steps)
