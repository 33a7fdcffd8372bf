"""Tasks that go out to actors and are taken back, against the books of the audit.

The one idea: a task has one holder at a time, who was told what the plan said.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from shoal.coordinator.deciding.events import Brief, Briefed, Heard, Stepped, Tick
from shoal.protocol.messages import Assign, Hello, TaskName
from shoal.protocol.work import Words
from shoal.simulation.books import Holding, Row, told, wrong

if TYPE_CHECKING:
    from shoal.simulation.audit import Audit


def brief(audit: Audit, effect: Brief) -> None:
    """Check a task whose brief is to be made: its actor has it from now on."""
    name = (effect.task.version, effect.task.index)
    session = audit.core.facts.ledger.leases[name].session
    _given(audit, audit.rows[session], session, name, effect.attempt, effect.task.clients, told(effect.task))
    audit.held[name].briefing = True
    if effect.task.briefed != audit.rows[session].briefed.issuperset(effect.task.clients):
        wrong(f"{effect}, and its actor has had briefs for clients {audit.rows[session].briefed}")


def assign(audit: Audit, row: Row, session: bytes, message: Assign) -> None:
    """Check a task that is told to its actor: for the first time, after its brief was made, or again."""
    task = message.task
    if isinstance(audit.event, Heard) and isinstance(audit.event.envelope.message, Hello) and task in row.tasks:
        holding = audit.held[task]  # told again to an actor that came back
        if (holding.session, holding.attempt, holding.clients, holding.told) != (
            session,
            message.attempt,
            message.clients,
            told(message),
        ):
            wrong(f"{message} is told to one who has {holding}")
        row.briefed.update(message.clients if message.counts else ())
        return
    if isinstance(audit.event, Briefed) and task == audit.event.task:
        holding = audit.held[task]
        if (holding.session, holding.attempt, holding.clients) != (session, message.attempt, message.clients):
            wrong(f"{message} is told to one who has {holding}")
        if bool(message.brief) != (holding.handout is not None):
            wrong(f"{message} goes out with brief {holding.handout}")
        row.briefed.update(message.clients if message.counts else ())
        return
    knows = audit.setting.bounds.brief_once and (not message.counts or row.briefed.issuperset(message.clients))
    if audit.setting.bounds.briefs and not knows:
        wrong(f"{message} goes out before its brief is made")
    _given(audit, row, session, task, message.attempt, message.clients, told(message))


def _given(
    audit: Audit,
    row: Row,
    session: bytes,
    task: TaskName,
    attempt: int,
    clients: tuple[int, ...],
    told: tuple[str, bool, Words],
) -> None:
    if told != audit.setting.schedule.told(task[0], told[1]):
        wrong(f"task {task}, {told}, is not what the plan said")
    if task in audit.held:
        wrong(f"task {task} is given out while {audit.held[task]} has it")
    if task in audit.counted:
        wrong(f"task {task} is given out, and was counted")
    tries = audit.tries.get(task, 0) + 1
    for part in range(len(clients)):  # the task may come back in parts, of one client each
        audit.tries[(task[0], task[1] + part)] = tries
    if attempt != audit.attempt(task) or audit.faults.get(task, 0) >= audit.setting.bounds.attempts:
        wrong(f"task {task} is given out with attempt {attempt}, for the {tries}. time")
    beside = [audit.held[one] for one in row.tasks if one not in audit.folding | audit.pulled.keys()]
    alone = task in audit.blamed
    audit.blamed.discard(task)
    if (alone and beside) or any(one.alone for one in beside):
        wrong(f"task {task} goes to an actor that has {beside}, and one of them is to be tried alone")
    late = task[0] != audit.core.facts.version if not audit.setting.schedule.streams else task[0] > audit.core.facts.version
    if late:
        wrong(f"task {task} is given out at version {audit.core.facts.version}")
    if row.evaluates and told[1]:
        wrong(f"task {task}, which is training, goes to an evaluator")
    failed = audit.faults.get(task, 0) > 0  # then an evaluation is for who trains
    if not (told[1] or row.evaluates or failed) and any(one.evaluates and one.able for one in audit.rows.values()):
        wrong(f"task {task}, an evaluation, goes to an actor that trains, and an evaluator is here")
    if failed and row.evaluates and not all(one.evaluates for one in audit.rows.values()):
        wrong(f"task {task}, which failed, goes to an evaluator, and an actor that trains is here")
    ready = task[0] <= row.held
    audit.held[task] = Holding(session, attempt, clients, told, audit.core.facts.now, alone=alone, ready=ready)
    row.tasks.add(task)
    if row.stuck or row.mute:
        wrong(f"task {task} goes to an actor that hangs, or of which nothing comes")
    takes = row.actor.capacity if row.actor.alone is None else math.inf  # it may have had them before
    if len(row.tasks) > takes:
        wrong(f"{len(row.tasks)} tasks at an actor that takes {row.actor.capacity}")
    if len(row.tasks - audit.folding.keys()) > audit.setting.most:
        wrong(f"{row.tasks} are at an actor at once, {audit.folding.keys()} are with the learner, of {audit.setting.most}")


def cancel(audit: Audit, row: Row, session: bytes, task: TaskName) -> None:
    """Check a task that is taken from its actor."""
    only_own(audit, session)
    if isinstance(audit.event, Stepped):
        audit.due.append((task, "stale"))
    holding = audit.held.get(task)
    if holding is None or holding.session != session:
        wrong(f"task {task} is taken from one that does not have it")
    if holding.owed:
        recalled(audit, task, holding)
    if isinstance(audit.event, Tick) and not holding.owed:
        _overdue(audit, row, task, holding)
    row.dropped.append((*task, holding.attempt))
    audit.end(task, holding)


def _overdue(audit: Audit, row: Row, task: TaskName, holding: Holding) -> None:
    """Check that a task is taken back because its own time is up, or because its actor hangs in another; a fault only of
    the task that the worker is at."""
    took, limit = audit.core.facts.now - max(holding.since, row.free_at), audit.limit(holding.told[0])
    at = audit.at_it(row)
    if not row.stuck and (at not in (None, task) or not took > limit > 0):
        wrong(f"task {task} is late after {took} s of {limit} s, and its actor is at {at}")
    if at == task:
        audit.fault(task, holding)
    elif holding.alone:
        audit.blamed.add(task)  # it is still to be tried alone
    row.stuck = row.stuck or (task[0] <= row.held and not holding.left)


def recalled(audit: Audit, task: TaskName, holding: Holding) -> None:
    """Check that acknowledged work is done again only if no actor that is here, and has offered all its work, had it."""
    owed = audit.books.owed.get((task, holding.attempt))  # None: given up before, and its actor may have done it again
    row = audit.rows.get(owed.holding.session) if owed else None
    honest = owed is not None and owed.product is not None and owed.product.honest
    here = row is not None and row.settled and not row.away
    if isinstance(audit.event, Tick) and honest and here and audit.setting.keeps and not audit.setting.weather.wild:
        wrong(f"task {task} was acknowledged and is asked of others, and its actor is here")


def only_own(audit: Audit, session: bytes) -> None:
    """Check that what an actor said changes only what is this actor's own."""
    if isinstance(audit.event, Heard) and audit.event.envelope.session != session:
        wrong(f"{audit.event.envelope.message} changed what is another actor's")
