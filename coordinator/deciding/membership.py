"""Membership: actors that join, come back, and are gone.

The one idea: an actor is known by its session, over any connection; so an actor is new, still has its place, or has lost its
place, and each case is handled once, however often the actor says Hello.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shoal.coordinator.deciding import desk
from shoal.coordinator.deciding.events import Admit, Effect, Gone, Heard
from shoal.coordinator.deciding.roster import Actor
from shoal.coordinator.reports import Report
from shoal.protocol.errors import printable
from shoal.protocol.messages import PROTOCOL, Hello

if TYPE_CHECKING:
    from shoal.coordinator.deciding.core import Core


def greet(core: Core, event: Heard, hello: Hello, actor: Actor | None) -> Iterator[Effect]:
    peer, session, name = event.peer, event.envelope.session, printable(hello.name, 64)
    ours, theirs = PROTOCOL >> 8, hello.protocol >> 8
    if ours != theirs:
        reason = f"this coordinator speaks protocol {ours}, you speak {theirs}: install the same shoal"
        yield core.refusal(peer, session, reason, final=True)
        yield Report("refused", f"{name} speaks protocol {theirs}, not {ours}", "warning")
        return
    if actor is not None and (hello.greeting < actor.greeting or (hello.greeting == actor.greeting and actor.spoke)):
        return  # a late Hello: it was answered, and the actor has said more since
    if actor is not None and hello.epoch == core.epoch and (hello.greeting > actor.greeting or actor.resumed):
        yield from _resume(core, actor, peer, hello)
        return
    if actor is not None and (actor.peer != peer or hello.greeting != actor.greeting):
        yield from part(core, actor, "came back over another connection" if actor.peer != peer else "starts over")
        actor = None
    if actor is None:
        if stranger := core.roster.at(peer):
            yield from part(core, stranger, "said Hello as another session")
        actor = core.roster.join(session, peer, name, core.now, event.user)
        core.farewell.back(session)
        actor.greeting = hello.greeting
        core.ledger.verdicts.join(session)
        desk.unpark(core)  # a parked task may be the newcomer's now
        yield Report("joined", f"{name} joined as actor {actor.number}")
    core.roster.hear(actor, core.now)
    core.roster.say(actor, core.now)
    yield Admit(peer, session, actor.number, hello)


def _resume(core: Core, actor: Actor, peer: bytes, hello: Hello) -> Iterator[Effect]:
    """Give an actor back its place, which both sides remember: only messages and arrays under way are lost."""
    if peer != actor.peer and (stranger := core.roster.at(peer)):
        yield from part(core, stranger, "said Hello as another session")
    if peer != actor.peer:
        yield Report("resumed", f"{actor.name} is back over another connection")
    actor.greeting, actor.stuck = hello.greeting, actor.stuck and hello.busy
    core.roster.resume(actor, peer, hello.held, core.version, core.now)
    desk.unpark(core)  # a parked task may be this actor's now
    yield Admit(peer, actor.session, actor.number, hello, resumed=True)
    for name in sorted(actor.tasks):
        lease = core.ledger.leases[name]
        if not (lease.folding or lease.briefing):
            yield desk.tell(core, actor, lease)


def lose(core: Core, actor: Actor, why: str, dead: bool) -> Iterator[Effect]:
    """Part an actor whose connection is lost; if its arrays were half-way, keep its place until `patience_for` is over."""
    if actor.away and not dead:
        return
    if not dead and any(core.ledger.leases[name].moving for name in actor.tasks):
        core.roster.leave(actor)
        core.ledger.unpark(actor)
        yield Report("away", f"{actor.name} {why} while its arrays were on their way; waiting for it", "warning")
    else:
        core.farewell.lost(actor, core.now)
        yield from part(core, actor, why)


def part(core: Core, actor: Actor, why: str) -> Iterator[Effect]:
    """Remove an actor that is gone; its tasks go to others."""
    core.roster.part(actor)
    core.ledger.verdicts.part(actor.session)
    yield Report("lost", f"{actor.name} {why}; {len(actor.tasks)} of its tasks go to others", "warning")
    for name in sorted(actor.tasks):
        lease = core.ledger.leases[name]
        if not lease.folding:
            yield from desk.take_back(core, lease, f"{actor.name} {why}")
    core.ledger.unpark(actor)
    for lease in core.ledger.promises():
        if lease.session == actor.session and not lease.folding:
            lease.offered = None
            yield from desk.unpull(core, lease)  # the actor may come back with the contribution
    yield Gone(actor.session)
