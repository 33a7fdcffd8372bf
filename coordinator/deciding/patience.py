"""The effects of time on a run: beats, silence, leases that run out, promises that are not kept, quarantines.

The one idea: every wait for an actor has a limit, and the core does the same at every limit: it gives the work to other actors
and reports that to the person.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shoal.coordinator.deciding import desk, membership
from shoal.coordinator.deciding.events import Effect, Evict
from shoal.coordinator.deciding.ledger import Lease
from shoal.coordinator.deciding.roster import Actor
from shoal.coordinator.reports import Report
from shoal.protocol.fetching import to_go
from shoal.protocol.messages import Beat

if TYPE_CHECKING:
    from shoal.coordinator.deciding.core import Core


def tick(core: Core) -> Iterator[Effect]:
    if core.goal.reached(core.version, core.steps) and not (core.stepping or core.ledger.leases or core.ledger.folded):
        yield from core.end("done", failed=False)  # an earlier life reached the goal
        return
    for freed in core.roster.unbar(core.now):
        desk.unpark(core)  # a parked task may be for a freed actor
        yield Report("quarantine", f"{freed.name} may have work again")
    if core.ledger.promised and core.now >= core.back_by and not core.reached:
        yield from _recall(core)
    while actor := core.roster.silent(core.now - core.rules.patience_for(len(core.roster))):
        yield from membership.part(core, actor, f"silent for {core.now - core.roster.heard_at(actor):.1f} s")
    beat = core.rules.beat_for(len(core.roster))
    while actor := core.roster.unspoken(core.now - beat):
        yield core.say(actor, Beat(core.version, core.kept, beat))
    if core.rules.lease:
        yield from _expire(core)
    if core.now - max(core.moved_at, core.complained_at) > core.rules.quiet:
        core.complained_at = core.now
        yield Report("waiting", "nothing moves: waiting for " + "; ".join(waiting_for(core)), "warning")


def _expire(core: Core) -> Iterator[Effect]:
    """Take back the leases whose time is up."""
    for lease in _late(core):
        yield from _stick(core, lease)
        yield from overdue(core, lease, f"no result within its lease of {core.rules.lease:g} s")


def _late(core: Core) -> list[Lease]:
    """Return the leases whose time is up, oldest first, because leases are kept in the order they were given. A lease whose
    contribution waits here or with the learner is not late, and must not hide others."""
    late: list[Lease] = []
    for lease in core.ledger.leases.values():
        if core.now - lease.since <= core.rules.lease:
            break
        if not (lease.folding or lease.pulled or lease.briefing or lease.promise):
            late.append(lease)
    return late


def overdue(core: Core, lease: Lease, why: str) -> Iterator[Effect]:
    yield Report("late", f"task {lease.name}: {why}", "warning")
    yield from desk.revoke(core, lease)
    yield from desk.take_back(core, lease, why)


def _stick(core: Core, lease: Lease) -> Iterator[Effect]:
    """Give the lease's actor no more tasks until its worker speaks: the worker may hang in the task. A worker whose weights or
    brief have not arrived has not begun."""
    actor = core.roster.actors.get(lease.session)
    if actor is not None and lease.task.version <= actor.held and not lease.left:
        actor.stuck = True
        core.roster.allow(actor, 0)
        core.ledger.unpark(actor)
        yield Evict(actor.peer)


def unstick(core: Core, actor: Actor) -> None:
    """Give a stuck actor tasks again: its worker spoke. A worker never speaks of a task cancelled early, so any word counts."""
    if actor.stuck:
        actor.stuck = False
        if not actor.idles:
            core.roster.allow(actor, core.rules.ahead)


def strike(core: Core, actor: Actor, why: str) -> Iterator[Effect]:
    """Count a refused or failed result; at `strikes` in a row quarantine the actor, if another actor can have work."""
    actor.strikes += 1
    if not 0 < core.rules.strikes <= actor.strikes or actor.idles or core.roster.alone(actor):
        return
    seconds = core.rules.quarantine * 2 ** min(actor.barred, 3)
    actor.strikes, actor.barred = 0, actor.barred + 1
    core.roster.bar(actor, core.now + seconds)
    core.ledger.unpark(actor)
    no_good = f"{core.rules.strikes} times in a row its work was no good, the last time: {why}"
    yield Report("quarantine", f"{actor.name} gets no work for {seconds:g} s: {no_good}", "warning")


def _recall(core: Core) -> Iterator[Effect]:
    """Take back the promises whose actor is not back or lacks the contribution: the task is done again at its version."""
    for lease in core.ledger.promises(upto=core.version):
        if not (lease.folding or lease.pulled):
            yield from desk.revoke(core, lease)
            yield from desk.take_back(core, lease, "nobody offers it again")


def waiting_for(core: Core, most: int = 5) -> list[str]:
    """Return a line for each thing that the run waits for, with the seconds it has waited; at most `most` and a count."""
    if core.stepping:
        return [f"the learner, on the step to version {core.version + 1}, for {core.now - core.moved_at:.0f} s"]
    if not core.roster:
        return [f"an actor to join, for {core.now - core.moved_at:.0f} s"]
    held = [lease for lease in core.ledger.leases.values() if lease.session in core.roster.actors and not lease.promise]
    lines = [_awaited(core, core.roster.actors[lease.session], lease) for lease in held]
    promised = core.ledger.promised.total()
    lines = [f"{promised} contributions that were accepted before the restart"] * (promised > 0) + lines
    return lines[:most] + [f"{len(lines) - most} tasks more"] * (len(lines) > most)


def _awaited(core: Core, actor: Actor, lease: Lease) -> str:
    """Return a line on a task that is out, and on the arrays under way for it."""
    line = f"{actor.name}, on task {lease.name}, for {core.now - lease.since:.0f} s"
    if lease.briefing:
        return f"{line}: the learner, which makes its brief"
    if lease.pulled or lease.left:
        return f"{line}: {'its arrays' if lease.pulled else 'its brief'}, {to_go(lease.left, lease.nbytes)}"
    waits = actor.under_way and lease.task.version > actor.held
    return f"{line}: weights {actor.sent} on their way to it" if waits else line
