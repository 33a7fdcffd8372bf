"""Actors that join, come back and are gone, and the weights that go to them, against the books of the audit.

The one idea: each session has one row, and the row says what its actor can have and know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.coordinator.deciding.events import Admit, Finish, Gone, Heard, SendWeights, Stepped
from shoal.simulation.books import Row, wrong

if TYPE_CHECKING:
    from shoal.simulation.audit import Audit


def admit(audit: Audit, effect: Admit) -> None:
    """Check a Welcome: to a new actor, to one that comes back, or to a Hello that was repeated."""
    audit.answers += 1
    actor = audit.core.facts.roster.actors[effect.session]
    row = audit.rows.get(effect.session)
    if actor.peer != effect.peer:
        wrong(f"{effect.hello} is answered to a connection that is not the actor's")
    if effect.resumed:
        if row is None or row.actor is not actor or effect.hello.epoch != audit.core.facts.epoch:
            wrong(f"{effect.hello} resumes a place that it never had")
        row.peer, row.under_way, row.away, row.heard_at = effect.peer, False, False, audit.core.facts.now
        row.mute = False
        row.sent = row.held = effect.hello.held if -1 <= effect.hello.held <= row.sent else -1
        row.greeting, row.spoke, row.stuck = effect.hello.greeting, False, row.stuck and effect.hello.busy
        row.settled = False
        for task in row.tasks if not effect.hello.busy else ():
            if (handout := audit.held[task].handout) and task not in audit.pulled:
                audit.held[task].left = handout.memory.nbytes
        return
    if row is not None and row.actor is actor and (row.spoke or row.greeting != effect.hello.greeting):
        wrong(f"{effect.hello} comes from one that starts over, and is taken for a repeat")
    if row is None or row.actor is not actor:
        row = audit.rows[effect.session] = Row(actor, effect.peer, greeting=effect.hello.greeting)
        audit.peak = max(audit.peak, len(audit.rows))
    row.heard_at = audit.core.facts.now
    row.evaluates = effect.hello.evaluates
    numbers = [row.actor.number for row in audit.rows.values() if not row.evaluates]
    if len({*numbers}) < len(numbers) or effect.number >= audit.peak or (effect.number < 0) != row.evaluates:
        wrong(f"{len(audit.rows)} actors have numbers {numbers}, without evaluators; the newest has {effect.number}")


def weights(audit: Audit, effect: SendWeights) -> None:
    """Check weights that go to an actor: the newest, which it lacks, and one version at a time."""
    row = audit.rows.get(effect.session)
    if row is None or row.peer != effect.peer:
        wrong("weights go to a peer that has not joined")
    if row.under_way:
        wrong(f"version {effect.version} is queued behind version {row.sent}")
    if effect.version != audit.core.facts.version or effect.version != audit.hub.published[0] or effect.version <= row.sent:
        wrong(f"version {effect.version} goes out at version {audit.hub.published[0]}, after {row.sent}")
    shown = audit.books.shown
    if effect.same != (shown.get(effect.held) == shown[effect.version]):
        wrong(f"{effect}, of weights {shown}")
    row.sent, row.under_way = effect.version, True


def gone(audit: Audit, effect: Gone) -> None:
    """Check the word that an actor is gone, which comes once for each actor."""
    if effect.session not in audit.parted:
        wrong(f"{effect}, who is here")
    audit.parted.remove(effect.session)
    audit.leaving.add(effect.session)


def part(audit: Audit, session: bytes, row: Row) -> None:
    """Take an actor that is gone out of the books; its tasks are nobody's."""
    if isinstance(audit.event, Heard) and session != audit.event.envelope.session and row.peer != audit.event.peer:
        wrong(f"{audit.event.envelope.message} put another actor out")
    del audit.rows[session]
    audit.parted.add(session)
    for task in row.tasks:
        if task not in audit.folding and not audit.held[task].owed:
            audit.held.pop(task, None)


def finish(audit: Audit, effect: Finish) -> None:
    """Check the end of the run: it is due, all actors are told, and the last version is in a snapshot."""
    audit.over = True
    if audit.stops != audit.rows.keys():
        wrong(f"{len(audit.stops)} of {len(audit.rows)} actors are told to stop")
    if effect.reason == "done" and not audit.setting.goal.reached(audit.books.published, audit.books.steps):
        wrong(f"done at version {audit.books.published} and {audit.books.steps} steps, for {audit.setting.goal}")
    kept = audit.snapshots()
    if isinstance(audit.event, Stepped) and effect.reason == "done" and audit.books.published not in kept:
        wrong(f"actors are told to leave after version {audit.books.published}, and versions {kept} are in snapshots")
