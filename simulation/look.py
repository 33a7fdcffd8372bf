"""Invariants without outward sign: the core's indices agree with each other, and no index grows with the run.

The one idea: an index answers a question quickly; a slow count, every LOOK (64) events, must give the same answer.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from shoal.coordinator.deciding.core import LOOK
from shoal.coordinator.deciding.verdicts import JUDGED
from shoal.protocol.messages import TaskName
from shoal.simulation.books import Row, wrong

if TYPE_CHECKING:
    from shoal.simulation.actors import Life
    from shoal.simulation.audit import Audit
    from shoal.simulation.hub import Hub

BACKLOG = 400  # results that an actor can make before its stalled connection is given up


def look(audit: Audit) -> None:
    """Compare the core's indices with slow counts and bounds. Raises ViolationError."""
    for what, (is_, should) in _facts(audit).items():
        if is_ != should:
            wrong(f"{what}: {is_} in the core, {should} in the books")
    for what, (is_, bound) in _bounds(audit).items():
        if is_ > bound:
            wrong(f"{what}: {is_}, and at most {bound} are expected")


def punctual(audit: Audit) -> None:
    """Compare what is late with the limits, after a tick that was acted on, which deals with all that is late. After others a
    limit may have become shorter since the last such tick. Raises ViolationError."""
    now = audit.core.facts.now
    late = max((_late(audit, task) for task in audit.held), default=0.0) if audit.setting.bounds.lease else 0.0
    silent = max((now - row.heard_at - _borne(audit, row) for row in audit.rows.values()), default=0.0)
    for what, seconds in (("a lease", late), ("the silence that is borne", silent)):
        if seconds > LOOK:
            wrong(f"{seconds} seconds beyond {what}, and at most {LOOK} are expected")


def held(hub: Hub) -> None:
    """Check that the shell holds exactly the arrays of contributions on their way in. Raises ViolationError."""
    deliveries = hub.traffic.deliveries
    lying = {one.message.slot[0] for one in deliveries.values() if one.message.slot}
    if lying != hub.opened:
        wrong(f"what is read in actors' memory: {hub.opened} is open, {lying} is on its way to the learner")
    folding = {task for task, one in deliveries.items() if one.state == "folding"}
    if folding != set(hub.audit.folding):
        wrong(f"what is with the learner: {folding} in the traffic, {set(hub.audit.folding)} in the books")
    fetched = sum(one.message.nbytes for one in deliveries.values() if one.fetch and not one.large)
    if fetched != hub.traffic.receiving.held:
        wrong(f"bytes that are fetched: {hub.traffic.receiving.held} are counted, and there are {fetched}")


def _facts(audit: Audit) -> dict[str, tuple[Any, Any]]:
    """Facts by name: the core's value, and the value that it should be."""
    core, ledger, roster = audit.core, audit.core.facts.ledger, audit.core.facts.roster
    folding = [lease for lease in ledger.leases.values() if lease.folding]
    actors = list(roster.actors.values())
    deliveries = audit.hub.traffic.deliveries.values()
    fetched = {one.task for one in deliveries if one.state != "folding" and one.task not in audit.folding}
    return {
        "who is here": (roster.actors.keys(), audit.rows.keys()),
        "what they hold": ({a.session: a.tasks for a in actors}, {s: row.tasks for s, row in audit.rows.items()}),
        "what is out": (set(ledger.leases), set(audit.held)),
        "room": (
            roster.contributors.room,
            sum(max(0, one.capacity - len(one.tasks)) for one in roster.contributors.actors.values()),
        ),
        "parked": (ledger.parked, sum(len(actor.parked) for actor in actors)),
        "folding": ({lease.name for lease in folding}, set(audit.folding)),
        "coming": (sum(coming.leases for coming in ledger.coming.values()), len(folding)),
        "briefs": (
            {(one.name, one.attempt) for one in ledger.leases.values() if one.brief},
            {(name, one.attempt) for name, one in audit.held.items() if one.handout and name not in audit.folding},
        ),
        "steps": (core.facts.steps, audit.books.steps),
        "tasks of closed rounds": (_closed(audit), []),
        "who has not what is believed": (_believed(audit), []),
        "who gets no work": (
            {a.session for a in actors if not a.capacity},
            {s for s, row in audit.rows.items() if row.stuck or row.away or row.barred or row.mute},
        ),
        "evaluators that can be given tasks": (
            roster.evaluators.able,
            {s for s, row in audit.rows.items() if row.evaluates and row.able},
        ),
        "idle evaluators": (
            roster.evaluators.idle.keys(),
            {s for s, row in audit.rows.items() if row.evaluates and row.able and not row.tasks},
        ),
        "evaluations that have not failed": (
            list(ledger.evaluations),
            [one for one in (*ledger.evaluations, *ledger.returned) if not (one.task.counts or one.faults)],
        ),
        "tasks that wait for one evaluator": ([one for a in actors if a.evaluates for one in a.parked], []),
        "tables of who is gone": (_left_behind(audit), set()),
        "what is fetched": (fetched, fetched if audit.changes else set(audit.pulled)),
    }


def _bounds(audit: Audit) -> dict[str, tuple[float, float]]:
    """Quantities by name: the amount that there is, and the most that there may be."""
    core, setting, ledger, roster = audit.core, audit.setting, audit.core.facts.ledger, audit.core.facts.roster
    most, bounds = setting.most, setting.bounds
    shares = Counter(roster.contributors.homes.values())
    here = [session for session, actor in roster.contributors.actors.items() if not actor.away]
    played = [shares[session] for session in here] or [0]
    lives = [life for life in audit.hub.world.lives if life.honest]
    lopsided = bounds.lease or any(row.barred or row.mute for row in audit.rows.values())
    judged = max(map(len, ledger.verdicts.last.values()), default=0)
    return {
        "outstanding": (ledger.outstanding(core.facts.version), _most_outstanding(audit) + len(audit.hub.found.promises)),
        "versions with the learner": (
            len(ledger.coming) + len(ledger.folded),
            2 + (most + 1) * audit.peak + len(audit.hub.found.promises),
        ),
        "promises": (ledger.promised.total(), len(audit.hub.found.promises)),
        "verdicts": (judged, JUDGED + most),
        "homes": (len(roster.contributors.homes), setting.schedule.clients),
        "clients more than another plays": (max(played) - min(played), math.inf if lopsided else 1),
        "what an actor keeps": (max(map(_kept, lives)), 4 * most + BACKLOG),
        "bytes that are fetched": (audit.hub.traffic.receiving.held, setting.work_room + 2 * setting.work_bytes),
        "arrays on a shelf": (max(len(one.shelf) - _retained(one) for one in lives), 4 * most + BACKLOG),
        "bytes retained": (max(one.session.retained_bytes for one in lives), bounds.retain),
    }


def _borne(audit: Audit, row: Row) -> float:
    """Seconds that an actor may be silent: without limit while it computes, as far as can be known."""
    bounds, many = audit.setting.bounds, len(audit.core.facts.roster)
    if row.mute and row.tasks:
        return bounds.away_for(many)
    computes = bounds.watched and not (row.away or row.mute) and (row.tasks or row.actor.runs)
    return math.inf if computes else bounds.patience_for(many)


def _late(audit: Audit, task: TaskName) -> float:
    """Seconds by which a task's time is over; 0 if it has a result, waits behind another at its actor, or has no limit."""
    holding = audit.held[task]
    if holding.owed or holding.briefing or task in audit.folding or task in audit.pulled:
        return 0.0
    row, limit = audit.rows[holding.session], audit.limit(holding.told[0])
    waits = audit.at_it(row) not in (None, task)
    return 0.0 if waits or not limit else audit.core.facts.now - max(holding.since, row.free_at) - limit


def _retained(life: Life) -> int:
    """The number of tasks whose work was accepted, in this life of the coordinator or an earlier one, and that this actor still
    keeps."""
    session = life.session
    return len(session.retained) + sum(waiting.onto >= 0 for waiting in session.unjudged.values())


def _kept(life: Life) -> int:
    session = life.session
    return len(session.unjudged) + len(session.retained) + len(session.tasks) - _retained(life)


def _most_outstanding(audit: Audit) -> int:
    schedule, full = audit.setting.schedule, (audit.setting.most + 1) * audit.peak
    return 2 * full + 2 if schedule.streams else max(schedule.cohort + schedule.spare + schedule.judges, full)


def _believed(audit: Audit) -> list[int]:
    """Places of honest actors that have older weights than the core thinks; none if messages do not keep order (wild)."""
    if audit.setting.weather.wild:
        return []
    actors, lives = audit.core.facts.roster.actors, [life for life in audit.hub.world.lives if life.honest]
    here = [(life, actor) for life in lives if (actor := actors.get(life.session.session))]
    same = [(life, actor) for life, actor in here if life.session.epoch == audit.core.facts.epoch]
    return [life.place for life, actor in same if actor.greeting == life.session.greeting and actor.held > life.session.held]


def _left_behind(audit: Audit) -> set[bytes]:
    """Sessions that the core does not have, and of which something is kept outside the core."""
    traffic = audit.hub.traffic
    kept = {*traffic.lanes.by_session, *traffic.receiving._ways, *traffic.receiving._due, *traffic.serving._readers}
    return kept - audit.core.facts.roster.actors.keys() - audit.leaving


def _closed(audit: Audit) -> list[TaskName]:
    """Tasks that wait, though their round is over; none in a stream."""
    facts = audit.core.facts
    ledger, actors = facts.ledger, facts.roster.actors.values()
    waiting = [*ledger.returned, *ledger.evaluations, *(one for actor in actors for one in actor.parked)]
    over = facts.version if not audit.setting.schedule.streams else -1
    return [(task.version, task.index) for one in waiting if (task := one.task).version < over]
