"""Membership: actors that join, come back, and are gone.

The one idea: an actor is known by its session, over any connection; so an actor is new, still has its place, or has lost its
place, and each case is handled once, however often the actor says Hello.
"""

from __future__ import annotations

from collections.abc import Iterator

from shoal.coordinator.deciding import desk
from shoal.coordinator.deciding.actor import Actor
from shoal.coordinator.deciding.events import Admit, Effect, Gone, Heard, Lost
from shoal.coordinator.deciding.facts import Facts
from shoal.coordinator.deciding.plans import evaluate_every
from shoal.coordinator.reports import Report
from shoal.protocol.errors import printable
from shoal.protocol.messages import PROTOCOL, Hello, TaskName


def greet(facts: Facts, event: Heard, hello: Hello, actor: Actor | None) -> Iterator[Effect]:
    peer, session, name = event.peer, event.envelope.session, printable(hello.name, 64)
    ours, theirs = PROTOCOL >> 8, hello.protocol >> 8
    if ours != theirs:
        reason = f"this coordinator speaks protocol {ours}, you speak {theirs}: install the same shoal"
        yield facts.refusal(peer, session, reason, final=True)
        yield Report("refused", f"{name} speaks protocol {theirs}, not {ours}", "warning")
        return
    if hello.evaluates and not evaluate_every(facts.plan):
        reason = (
            "this run gives actors no evaluations: begin it with eval_every=50, say (and a federated job with eval_cohort=5)"
        )
        yield facts.refusal(peer, session, reason, final=True)
        yield Report("refused", f"{name} wants evaluations alone, and this run gives actors none", "warning")
        return
    if actor is not None and (hello.greeting < actor.greeting or (hello.greeting == actor.greeting and actor.spoke)):
        return  # a late Hello: it was answered, and the actor has said more since
    if actor is not None and hello.epoch == facts.epoch and (hello.greeting > actor.greeting or actor.resumed):
        yield from _resume(facts, actor, peer, hello)
        return
    if actor is not None and (actor.peer != peer or hello.greeting != actor.greeting):
        yield from part(facts, actor, "came back over another connection" if actor.peer != peer else "starts over")
        actor = None
    if actor is None:
        if stranger := facts.roster.at(peer):
            yield from part(facts, stranger, "said Hello as another session")
        actor = facts.roster.join(session, peer, name, facts.now, event.user, hello.follows, hello.evaluates)
        facts.farewell.back(session)
        actor.greeting, actor.host, actor.pid = hello.greeting, printable(hello.host, 64), hello.pid
        actor.offers, actor.cores, actor.memory, actor.gpus = hello.offers, hello.cores, hello.memory, hello.gpus
        facts.ledger.verdicts.join(session)
        desk.unpark(facts)  # a parked task may be the newcomer's now
        place = "joined as an evaluator" if actor.evaluates else f"joined as actor {actor.number}"
        place = "follows the weights" if hello.follows else place
        yield Report("joined", f"{name} {place}" + f", key {event.user[:8]}" * bool(event.user))
    facts.roster.hear(actor, facts.now)
    facts.roster.say(actor, facts.now)
    yield Admit(peer, session, actor.number, hello)


def _resume(facts: Facts, actor: Actor, peer: bytes, hello: Hello) -> Iterator[Effect]:
    """Give an actor back its place, which both sides remember: only messages and arrays under way are lost."""
    if peer != actor.peer and (stranger := facts.roster.at(peer)):
        yield from part(facts, stranger, "said Hello as another session")
    if peer != actor.peer:
        yield Report("resumed", f"{actor.name} is back over another connection")
    actor.greeting, actor.stuck = hello.greeting, actor.stuck and hello.busy
    facts.roster.resume(actor, peer, hello.held, facts.version, facts.now)
    desk.unpark(facts)  # a parked task may be this actor's now
    yield Admit(peer, actor.session, actor.number, hello, resumed=True)
    for name in sorted(actor.tasks):
        lease = facts.ledger.leases[name]
        if lease.brief and not (hello.busy or lease.pulled):
            lease.left = lease.nbytes  # its last pieces may be lost, and the worker has not begun
        if not (lease.folding or lease.briefing):
            yield desk.tell(facts, actor, lease)


def lose(facts: Facts, actor: Actor, lost: Lost) -> Iterator[Effect]:
    """Part an actor whose connection is lost; if its arrays were half-way, keep its place until `patience_for` is over. If the
    connection was silent before, the link may be cut and not the actor dead: keep the place of an actor with tasks until
    `away_for` is over."""
    why = lost.why
    if actor.away and not lost.dead:
        return
    moving = any(facts.ledger.leases[name].moving for name in actor.tasks)
    if not lost.dead and (moving or (actor.mute and actor.tasks)):
        facts.roster.leave(actor)
        if not actor.mute:  # its time to come back begins, however long it computed without a word before
            facts.roster.hear(actor, facts.now)
        facts.ledger.unpark(actor)
        when = "when nothing came over it" if actor.mute else "while its arrays were on their way"
        yield Report("away", f"{actor.name} {why} {when}; waiting for it", "warning")
    else:
        facts.farewell.lost(actor, facts.now)
        yield from part(facts, actor, why, died=True, record=lost.ran)


def part(
    facts: Facts, actor: Actor, why: str, *, died: bool = False, record: tuple[int, ...] | None = None
) -> Iterator[Effect]:
    """Remove an actor that is gone; its tasks go to others. died: True blames the task that it ran, and no other. record: as
    `ran` in Lost."""
    begun = [] if not died else suspects(facts, actor) if record is None else recorded(facts, actor, record)
    ran = begun[0] if begun else None
    facts.ledger.counts.deaths += ran is not None
    facts.roster.part(actor)
    facts.ledger.verdicts.part(actor.session)
    within = f" in task {ran}" if ran else ""
    yield Report("lost", f"{actor.name} {why}{within}; {len(actor.tasks)} of its tasks go to others", "warning")
    for name in sorted(actor.tasks):
        lease = facts.ledger.leases[name]
        if not lease.folding:
            alone = lease.alone or name in begun
            yield from desk.take_back(facts, lease, f"{actor.name} {why}", fault=name == ran, alone=alone)
    facts.ledger.unpark(actor)
    for lease in facts.ledger.promises():
        if lease.session == actor.session and not lease.folding:
            lease.offered = None
            yield from desk.unpull(facts, lease)  # the actor may come back with the contribution
    yield Gone(actor.session)


def dismiss(facts: Facts, session: bytes, reason: str) -> Iterator[Effect]:
    """Tell an actor not to come back, and remove it; none of its tasks is to blame."""
    if actor := facts.roster.actors.get(session):
        yield from part(facts, actor, f"was dismissed: {reason}")
        yield facts.refusal(actor.peer, session, reason, final=True)


def recorded(facts: Facts, actor: Actor, record: tuple[int, ...]) -> list[TaskName]:
    """Return the task that the actor's worker began last by a sure record, whatever the actor has said, if it still has it."""
    return [name for name in actor.tasks if (*name, facts.ledger.leases[name].attempt) == record]


def suspects(facts: Facts, actor: Actor) -> list[TaskName]:
    """Return the tasks that the actor's worker may have begun; first the task that it most probably ran: the task that its Beat
    named, or the first that it was given. Empty if the worker hung, or ran a task that was taken from it."""
    leases = [facts.ledger.leases[name] for name in sorted(actor.tasks)]
    begun = [lease for lease in leases if not (lease.done or lease.pulled or lease.briefing or lease.promise or lease.left)]
    begun = [lease for lease in begun if lease.task.version <= actor.held and not actor.stuck]
    if actor.runs and actor.runs not in [(*lease.name, lease.attempt) for lease in begun]:
        return []
    begun.sort(key=lambda lease: ((*lease.name, lease.attempt) != actor.runs, lease.since))
    return [lease.name for lease in begun]
