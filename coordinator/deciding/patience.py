"""The effects of time on a run: beats, silence, leases that run out, promises that are not kept, quarantines.

The one idea: every wait for an actor has a limit, and the core does the same at every limit: it gives the work to other actors
and reports that to the person.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from shoal.coordinator.deciding import desk, membership
from shoal.coordinator.deciding.actor import Actor
from shoal.coordinator.deciding.doing import doing
from shoal.coordinator.deciding.events import Effect, Evict, Probe, Pulse
from shoal.coordinator.deciding.facts import Facts
from shoal.coordinator.deciding.ledger import Lease
from shoal.coordinator.reports import Report
from shoal.protocol.fetching import to_go
from shoal.protocol.messages import BEATS, Beat

RARELY = 4.0  # seconds between the beats that an actor hears that is silent for longer
PROBED = 500  # silent actors whose connections are looked at in a turn, at most
ONCE = 60.0  # seconds between two reports that an actor is mute


def tick(facts: Facts) -> Iterator[Effect]:
    if facts.goal.reached(facts.version, facts.steps) and not (facts.stepping or facts.ledger.leases or facts.ledger.folded):
        yield from facts.end("done", failed=False)  # an earlier life reached the goal
        return
    for freed in facts.roster.unbar(facts.now):
        desk.unpark(facts)  # a parked task may be for a freed actor
        yield Report("quarantine", f"{freed.name} may have work again")
    if facts.ledger.promised and facts.now >= facts.back_by and not facts.reached:
        yield from _recall(facts)
    if facts.bounds.lease:
        yield from _expire(facts)
    for silent in facts.roster.silent(facts.now - facts.bounds.patience_for(len(facts.roster))):
        if not (_computes(facts, silent) or _cut_off(facts, silent)):
            yield from membership.part(facts, silent, f"silent for {_silence(facts, silent):.1f} s", died=True)
    yield from _probe(facts)
    beat = facts.bounds.beat_for(len(facts.roster))
    while actor := facts.roster.unspoken(facts.now - beat):
        silence = _silence(facts, actor)
        facts.roster.say(actor, facts.now)
        if silence < RARELY or silence % RARELY < 2 * beat:  # an actor that reads nothing has room for some thousand messages
            yield facts.say(actor, Beat(facts.version, facts.kept, beat))
    if facts.now - max(facts.moved_at, facts.complained_at) > facts.bounds.quiet:
        facts.complained_at = facts.now
        yield Report("waiting", "nothing moves: waiting for " + "; ".join(waiting_for(facts)), "warning")


def _silence(facts: Facts, actor: Actor) -> float:
    return facts.now - facts.roster.heard_at(actor)


def _computes(facts: Facts, actor: Actor) -> bool:
    """Return whether an actor may be silent because its worker computes in one call that holds Python's lock: its process lives
    as long as its connection does, and the worker has begun a task."""
    lives = facts.bounds.watched and not (actor.away or actor.mute)
    return lives and bool(actor.runs or membership.suspects(facts, actor))


def _cut_off(facts: Facts, actor: Actor) -> bool:
    """Return whether an actor with tasks may be silent because its link is cut, so that it may come back and go on."""
    return actor.mute and bool(actor.tasks) and _silence(facts, actor) <= facts.bounds.away_for(len(facts.roster))


def _probe(facts: Facts) -> Iterator[Effect]:
    """Ask how long nothing has come over the connections of actors that say nothing: a process that lives answers pings also
    while Python computes."""
    if not facts.bounds.watched or facts.now < facts.probe_at:
        return
    facts.probe_at = facts.now + facts.bounds.hush / 4
    unheard = max(facts.bounds.hush / 2, 1.5 * facts.bounds.beat_for(len(facts.roster)))
    silent = [actor for actor in facts.roster.silent(facts.now - unheard) if not (actor.away or actor.follows)]
    for actor in sorted(silent, key=lambda one: one.mute)[:PROBED]:  # first those of which nothing is known
        yield Probe(actor.peer)


def felt(facts: Facts, pulse: Pulse) -> Iterator[Effect]:
    """Give an actor no new tasks if nothing comes over its connection: its process is stopped, or its machine or link is down.
    The actor keeps the tasks that it has."""
    actor = facts.roster.at(pulse.peer)
    if actor is None or actor.away:
        return
    mute = min(pulse.silent, _silence(facts, actor)) >= facts.bounds.hush
    if mute and not actor.mute:
        facts.roster.hush(actor)
        facts.ledger.unpark(actor)
        if facts.now - actor.hushed_at >= ONCE:
            actor.hushed_at = facts.now
            yield Report("silent", _mute(facts, actor), "warning")
    elif actor.mute and not mute:
        _unmute(facts, actor)


def hear(facts: Facts, actor: Actor) -> None:
    """Note a sign of life of an actor, which may have tasks again if it was mute."""
    facts.roster.hear(actor, facts.now)
    if actor.mute:
        _unmute(facts, actor)


def _unmute(facts: Facts, actor: Actor) -> None:
    facts.roster.unhush(actor)
    desk.unpark(facts)  # tasks for its clients wait for it


def _mute(facts: Facts, actor: Actor) -> str:
    """Return a line on an actor over whose connection nothing comes."""
    why = "its process is stopped, or its machine or link is down"
    given_up = facts.bounds.away_for(len(facts.roster)) if actor.tasks else facts.bounds.patience_for(len(facts.roster))
    heard = f"{actor.name}, of which nothing has come for {_silence(facts, actor):.0f} s"
    return f"{heard}: {why}; it gets no new tasks, and is given up after {given_up:.0f} s"


def ready(facts: Facts, actor: Actor) -> None:
    """Begin the time of the actor's tasks that waited for the weights that it holds now."""
    for name in actor.tasks:
        lease = facts.ledger.leases[name]
        if not lease.ready and name[0] <= actor.held:
            lease.ready = True
            facts.ledger.renew(lease, facts.now)


def _expire(facts: Facts) -> Iterator[Effect]:
    """Take back the leases whose time is up. A task is to blame only if its actor can have begun it. The tasks that wait
    behind it go to other actors at once, and are not to blame."""
    for lease in _late(facts):
        if facts.ended or facts.ledger.leases.get(lease.name) is not lease:
            continue  # it waited behind another, and is with another actor by now
        actor = facts.roster.actors[lease.session]
        blamed = bool(membership.suspects(facts, actor))
        yield from _stick(facts, lease)
        behind = [facts.ledger.leases[name] for name in sorted(actor.tasks) if actor.stuck and name != lease.name]
        behind = [one for one in behind if not (one.folding or one.pulled or one.promise)]
        others = f"; waiting behind it, and given to others: {len(behind)}" * bool(behind)
        why = f"no result within its lease of {facts.limit(lease.task.kind):g} s"
        yield from overdue(facts, lease, f"{why}{others}", blamed=blamed)
        for one in behind if not facts.ended else ():
            yield from desk.revoke(facts, one)
            yield from desk.take_back(facts, one, f"{actor.name} hangs in another task", fault=False, alone=one.alone)


def _late(facts: Facts) -> list[Lease]:
    """Return the leases whose time is up, oldest first, because leases are kept in the order in which their time began. A lease
    whose contribution waits here or with the learner is not late, and must not hide others; neither is a lease that waits
    behind another task at its actor, because that task has a limit of its own."""
    late: list[Lease] = []
    limits = {kind: facts.limit(kind) for kind in facts.ledger.took}
    usual = facts.bounds.lease if facts.bounds.lease > 0 else facts.bounds.first
    shortest = min((limit for limit in (*limits.values(), usual) if limit > 0), default=math.inf)
    for lease in facts.ledger.leases.values():
        if facts.now - lease.since <= shortest:
            break
        if not (lease.folding or lease.pulled or lease.briefing or lease.promise):
            actor, limit = facts.roster.actors[lease.session], limits.get(lease.task.kind, usual)
            if facts.now - max(lease.since, actor.free_at) > limit > 0 and not _waits(facts, actor, lease):
                late.append(lease)
    return late


def _waits(facts: Facts, actor: Actor, lease: Lease) -> bool:
    """Return whether the actor's worker is, most probably, at another of its tasks."""
    begun = membership.suspects(facts, actor)
    return bool(begun) and begun[0] != lease.name


def overdue(facts: Facts, lease: Lease, why: str, *, blamed: bool = True) -> Iterator[Effect]:
    """Take a task back from its actor. blamed: the task may be the reason, and its count of faults rises."""
    yield Report("late", f"task {lease.name}: {why}", "warning")
    yield from desk.revoke(facts, lease)
    yield from desk.take_back(facts, lease, why, fault=blamed, alone=lease.alone and not blamed)


def _stick(facts: Facts, lease: Lease) -> Iterator[Effect]:
    """Give the lease's actor no more tasks until its worker speaks: the worker may hang in the task. A worker whose weights or
    brief have not arrived has not begun."""
    actor = facts.roster.actors.get(lease.session)
    if actor is not None and lease.task.version <= actor.held and not lease.left:
        actor.stuck = True
        facts.roster.allow(actor, 0)
        facts.ledger.unpark(actor)
        yield Evict(actor.peer)


def unstick(facts: Facts, actor: Actor) -> None:
    """Give a stuck actor tasks again: its worker spoke, or runs no task."""
    if actor.stuck:
        actor.stuck = False
        if not actor.idles:
            facts.roster.allow(actor, facts.bounds.ahead)


def strike(facts: Facts, actor: Actor, why: str) -> Iterator[Effect]:
    """Count a refused or failed result; at `strikes` in a row quarantine the actor, if another actor can have work."""
    actor.strikes += 1
    if not 0 < facts.bounds.strikes <= actor.strikes or actor.idles or facts.roster.contributors.alone(actor):
        return
    seconds = facts.bounds.quarantine * 2 ** min(actor.barred, 3)
    actor.strikes, actor.barred = 0, actor.barred + 1
    facts.roster.bar(actor, facts.now + seconds)
    facts.ledger.unpark(actor)
    no_good = f"{facts.bounds.strikes} times in a row its work was no good, the last time: {why}"
    yield Report("quarantine", f"{actor.name} gets no work for {seconds:g} s: {no_good}", "warning")


def _recall(facts: Facts) -> Iterator[Effect]:
    """Take back the promises whose actor is not back or lacks the contribution: the task is done again at its version."""
    for lease in facts.ledger.promises(upto=facts.version):
        if not (lease.folding or lease.pulled):
            yield from desk.revoke(facts, lease)
            yield from desk.take_back(facts, lease, "nobody offers it again")


def silent(facts: Facts, most: int = 5) -> list[str]:
    """Return a line for each actor over whose connection nothing comes; at most `most` and a count."""
    lines = [_mute(facts, facts.roster.actors[session]) for session in [*facts.roster.mute][:most]]
    many = len(facts.roster.mute)
    return lines + [f"{many - most} actors more of which nothing comes"] * (many > most)


def waiting_for(facts: Facts, most: int = 5) -> list[str]:
    """Return a line for each thing that the run waits for, with the seconds it has waited; at most `most` and a count."""
    if facts.stepping:
        return [f"the learner, on the step to version {facts.version + 1}, for {facts.now - facts.moved_at:.0f} s"]
    if not facts.roster:
        return [f"an actor to join, for {facts.now - facts.moved_at:.0f} s"]
    held = [lease for lease in facts.ledger.leases.values() if lease.session in facts.roster.actors and not lease.promise]
    lines = [awaited(facts, facts.roster.actors[lease.session], lease) for lease in held]
    promised = facts.ledger.promised.total()
    lines = [f"{promised} contributions that were accepted before the restart"] * (promised > 0) + lines
    lines = lines or [unasked(facts)]
    return lines[:most] + [f"{len(lines) - most} tasks more"] * (len(lines) > most)


def unasked(facts: Facts) -> str:
    """Return a line on a run whose actors have no task."""
    if facts.gathering:
        return f"{facts.bounds.gather - len(facts.roster)} more actors to join before the first tasks go out"
    if facts.ledger.waiting or not facts.roster.contributors.room:
        return "an actor that may have work again: each is in quarantine, hangs, is silent, or has lost its connection"
    folded, since = facts.ledger.folded.get(facts.version, 0), facts.now - facts.moved_at
    few = f", and has not enough with the contributions of {folded} clients" * (folded > 0)
    return f"the plan {type(facts.plan).__name__}, which gives no task{few}, for {since:.0f} s"


def awaited(facts: Facts, actor: Actor, lease: Lease) -> str:
    """Return a line on a task that is out, and on the arrays under way for it."""
    limit, began = 0.0 if lease.briefing else facts.limit(lease.task.kind), max(lease.since, actor.free_at)
    line = f"{actor.name}, on task {lease.name}, for {facts.now - began:.0f} s" + f" of at most {limit:.0f}" * (limit > 0)
    if actor.mute:
        return f"task {lease.name} at {_mute(facts, actor)}"
    if actor.away:
        return f"{line}: its connection was lost {_silence(facts, actor):.0f} s ago, and it may come back"
    if lease.briefing:
        return f"{line}: the learner, which makes its brief"
    if lease.pulled or lease.left:
        return f"{line}: {'its arrays' if lease.pulled else 'its brief'}, {to_go(lease.left, lease.nbytes)}"
    if actor.under_way and lease.task.version > actor.held:
        return f"{line}: weights {actor.sent} on their way to it"
    if _waits(facts, actor, lease):
        return f"{actor.name}, on task {lease.name}, which waits behind another task there"
    silence, unheard = _silence(facts, actor), max(1.0, BEATS * facts.bounds.beat_for(len(facts.roster)))
    busy = silence > unheard and _computes(facts, actor)
    if busy:
        return f"{line}: its interpreter is busy in one call for {silence:.0f} s"
    if where := doing(actor, lease):
        return f"{line}: {where}"
    return line if actor.progress or actor.pace >= 0 else f"{line}: starting (it has finished no task yet)"
