"""The audit's knowledge from an event: who was heard, what came, what the learner did.

The one idea: an event is a fact, so the books take it as it is; what the core makes of it is judged afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from shoal.coordinator.deciding.events import Briefed, Carried, Folded, Heard, Kept, Outdated, Pulse, Stepped, Unfit
from shoal.protocol.messages import PROTOCOL, Beat, Contribute, Failed, Have, Hello
from shoal.simulation.books import Row, wrong

OF_WORK, OF_MORE = (Contribute, Failed), (Have, Beat)

if TYPE_CHECKING:
    from shoal.simulation.audit import Audit


def _folded(audit: Audit, event: Folded) -> None:
    taken = audit.counted[event.task] = audit.folding.pop(event.task)
    audit.accepted += 1
    audit.due.append((event.task, "accepted"))
    audit.served.add(taken.holding.session)
    if taken.holding.counts:
        audit.books.paid(taken)
        audit.books.count(taken)
    audit.end(taken.task, taken.holding)


def _stepped(audit: Audit, event: Stepped) -> None:
    audit.books.stepped(event)
    audit.round(event.version)
    if audit.setting.bounds.retain and any(audit.core.facts.kept < version < event.version for version in audit.snapshots()):
        wrong(f"versions {audit.snapshots()} are in snapshots, and the core was told of version {audit.core.facts.kept}")


def _kept(audit: Audit, event: Kept) -> None:
    if event.version not in audit.snapshots():
        wrong(f"{event}, and versions {audit.snapshots()} are in snapshots")


def _unfit(audit: Audit, event: Unfit) -> None:
    audit.due.append((event.task, "refused"))
    holding = audit.folding.pop(event.task).holding
    if not holding.owed:
        audit.fault(event.task, holding)
    audit.end(event.task, holding)


def _hear(audit: Audit, event: Heard) -> None:
    envelope = event.envelope
    row = audit.rows.get(envelope.session)
    if row is not None and (row.peer != event.peer or envelope.epoch != audit.core.facts.epoch):
        row = None
    audit.expected = _expected(audit, event, row)
    if row is None:
        return
    message = envelope.message
    if not isinstance(message, Hello):  # which is a sign of life if it is answered
        row.heard_at, row.mute = audit.core.facts.now, False
    if isinstance(message, Have) and message.version == row.sent and row.under_way:
        row.under_way, row.held = False, message.version
    for task in row.tasks if isinstance(message, Have) else ():
        if not (holding := audit.held[task]).ready and task[0] <= row.held:
            holding.ready, holding.since = True, audit.core.facts.now
    if isinstance(message, OF_WORK):
        _result(audit, row, message)
    elif isinstance(message, Beat):
        row.runs = message.runs
    if isinstance(message, Beat):
        _begun(audit, row, message)
    row.settled = row.settled or isinstance(message, OF_MORE)
    row.spoke = row.spoke or not isinstance(message, Hello)
    audit.heard += isinstance(message, Contribute) and not _goes_on(audit, event)


def _begun(audit: Audit, row: Row, message: Beat) -> None:
    """Note what a Beat says of the worker: it is at no task, or at one, whose brief has arrived then."""
    if not message.runs:
        row.stuck = False
        return
    holding = audit.held.get(task := (message.runs[0], message.runs[1]))
    mine = holding is not None and (*task, holding.attempt) == message.runs and task in row.tasks
    if holding and mine and audit.setting.bounds.briefs and task not in audit.pulled:
        holding.left = 0


def _result(audit: Audit, row: Row, message: Contribute | Failed) -> None:
    """Note that the worker is free for its next task, if this is the first word of a result of a task that it was given."""
    what, task = (*message.task, message.attempt), message.task
    row.runs = () if row.runs == what else row.runs
    holding = audit.held.get(task)
    mine = holding is not None and (holding.session, holding.attempt) == (row.actor.session, message.attempt)
    if holding and mine and not holding.briefing:
        if task in audit.folding or task in audit.pulled or holding.owed:
            return
        holding.took = audit.core.facts.now - max(holding.since, row.free_at)
    elif what in row.dropped:
        row.dropped.remove(what)
    else:
        return
    row.free_at, row.stuck = audit.core.facts.now, False


def _goes_on(audit: Audit, event: Heard) -> bool:
    """Return whether the event is a contribution whose arrays are on their way, or with the learner already."""
    message = event.envelope.message
    if event.whole or not isinstance(message, Contribute):
        return False
    return audit.pulls or _with_learner(audit, event, message) or _to_come(audit, event, message)


def _to_come(audit: Audit, event: Heard, message: Contribute) -> bool:
    """Return whether the contribution is promised, and its version still to come."""
    lease = audit.core.facts.ledger.leases.get(message.task)
    return lease is not None and lease.offered == message and lease.session == event.envelope.session


def _with_learner(audit: Audit, event: Heard, message: Contribute) -> bool:
    taken, row = audit.folding.get(message.task), audit.rows[event.envelope.session]
    return taken is not None and (taken.actor.session, taken.holding.attempt) == (row.actor.session, message.attempt)


def _moved(audit: Audit, event: Carried) -> None:
    if row := audit.rows.get(event.session):
        row.heard_at, row.mute = audit.core.facts.now, False
    holding = audit.held.get(event.task) if event.task else None
    if holding and holding.handout and event.left < holding.left and event.task not in audit.pulled:
        holding.left, holding.since = event.left, audit.core.facts.now


def _pulse(audit: Audit, event: Pulse) -> None:
    for row in audit.rows.values():
        if row.peer == event.peer and not row.away:
            row.mute = min(event.silent, audit.core.facts.now - row.heard_at) >= audit.setting.bounds.hush


def _briefed(audit: Audit, event: Briefed) -> None:
    """Note a brief; only the actor that still has the task and attempt is told of it."""
    holding = audit.held.get(event.task)
    if holding and holding.attempt == event.attempt:
        holding.handout, holding.left = (event.arrays.what, event.arrays.nbytes) if event.arrays else (None, 0)
        holding.briefing, holding.since = False, audit.core.facts.now


def _outdated(audit: Audit, event: Outdated) -> None:
    row = audit.rows.get(event.session)
    if row is not None and row.under_way and row.sent == event.version and not row.away:
        row.under_way, row.sent = False, row.held


def _expected(audit: Audit, event: Heard, row: Row | None) -> int:
    """The number of answers to the message: 1; 0 if it asks nothing, or if the answer is on its way with the learner."""
    message = event.envelope.message
    if isinstance(message, Hello):
        return int(not _late(audit, event.envelope.session, message))
    if row is None or isinstance(message, Failed):
        return 1
    if not isinstance(message, Contribute):
        return 0
    return int(not _with_learner(audit, event, message) and not _goes_on(audit, event))


def _late(audit: Audit, session: bytes, hello: Hello) -> bool:
    """Return whether this Hello was answered before, and its sender has said more since."""
    row, same = audit.rows.get(session), hello.protocol >> 8 == PROTOCOL >> 8
    return same and row is not None and (hello.greeting, not row.spoke) < (row.greeting, True)


EVENTS: Mapping[type[Any], Callable[[Audit, Any], None]] = {
    Heard: _hear,
    Carried: _moved,
    Outdated: _outdated,
    Pulse: _pulse,
    Folded: _folded,
    Unfit: _unfit,
    Briefed: _briefed,
    Stepped: _stepped,
    Kept: _kept,
}
