"""The effects of an event, each judged against the books of the audit.

The one idea: an effect is a claim of the core, and the books must bear it out before they take it in.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from shoal.coordinator.deciding.events import (
    Admit,
    Brief,
    Finish,
    Fold,
    Gone,
    Heard,
    Lost,
    Pull,
    Send,
    SendTask,
    SendWeights,
    Step,
    Unpull,
)
from shoal.coordinator.reports import Report
from shoal.protocol.messages import Assign, Cancel, Contribute, Failed, Refused, Stop, Verdict
from shoal.simulation import given, present
from shoal.simulation.books import Row, Taken, told, wrong

if TYPE_CHECKING:
    from shoal.simulation.actors import Product
    from shoal.simulation.audit import Audit


def _send(audit: Audit, effect: Send | SendTask) -> None:
    envelope = effect.envelope
    message = envelope.message
    if envelope.epoch != audit.core.facts.epoch:
        wrong(f"epoch {envelope.epoch} in {envelope}")
    if isinstance(message, Refused):
        _refused(audit, effect)
        return
    row = audit.rows.get(envelope.session)
    if row is None or row.peer != effect.peer:
        wrong(f"{message} goes to a peer that has not joined")
    match message:
        case Assign():
            given.assign(audit, row, envelope.session, message)
        case Verdict():
            _verdict(audit, row, envelope.session, message)
        case Stop():
            audit.stops.add(envelope.session)
        case Cancel():
            given.cancel(audit, row, envelope.session, message.task)


def _refused(audit: Audit, effect: Send | SendTask) -> None:
    if not isinstance(audit.event, Heard) or effect.peer != audit.event.peer:
        wrong("a refusal to somebody who said nothing")
    audit.answers += 1


def _verdict(audit: Audit, row: Row, session: bytes, message: Verdict) -> None:
    given.only_own(audit, session)
    s = audit.setting.schedule
    if message.verdict == "stale" and (s.streams or s.deadline or s.spare):
        audit.served.add(session)  # the actor is too slow for this run, which is no fault
    audit.answers += isinstance(audit.event, Heard)
    counted = audit.counted.get(message.task)
    its = counted is not None and (counted.holding.session, counted.holding.attempt) == (session, message.attempt)
    if message.verdict == "accepted" and not its:
        wrong(f"{message} was not counted")
    if message.verdict != "accepted" and its and counted is not None and _remembered(audit, row, counted):
        wrong(f"{message} was counted")
    holding = audit.held.get(message.task)
    taken = audit.folding.get(message.task)
    if holding and (holding.session, holding.attempt) == (session, message.attempt) and not taken and not holding.briefing:
        owed = holding.owed.product if holding.owed else None
        if owed and owed.honest and message.verdict != "accepted" and not _made_again(audit, owed):
            wrong(f"{message}, of what was acknowledged")
        said = audit.event.envelope.message if isinstance(audit.event, Heard) else None
        if message.verdict == "stale" and isinstance(said, Contribute) and said.made_from < message.task[0]:
            wrong(f"{message}, of what cannot have been made for its task, which nobody does again")
        failed = isinstance(said, Failed)
        audit.due.append((message.task, "failed" if failed else message.verdict))
        if message.verdict == "refused" and not holding.owed:
            audit.fault(message.task, holding)
        audit.end(message.task, holding)


def _remembered(audit: Audit, row: Row, counted: Taken) -> bool:
    """Return whether the core must remember this verdict, of a bounded number: for an honest actor that repeats an
    unanswered contribution, if messages keep order."""
    said_again = counted.product is not None and counted.product.honest and not audit.setting.weather.wild
    return said_again and counted.actor is row.actor


def _made_again(audit: Audit, owed: Product) -> bool:
    """Return whether the actor made anew the work that it had no room to keep, for an order that came twice (wild
    weather)."""
    offered = audit.event.envelope.message if isinstance(audit.event, Heard) else None
    other = isinstance(offered, Contribute) and offered.digest != owed.bundle.sha256()
    return other and audit.setting.weather.wild and not audit.setting.keeps


def blame(audit: Audit, text: str) -> None:
    """Take the report of a loss, which may name the task that the lost actor ran."""
    named = [row for row in audit.rows.values() if text.startswith(f"{row.actor.name} ")]
    known = any(row.away or row.mute for row in named)
    if " silent for " in text and " in task " in text and audit.setting.bounds.watched and not known:
        wrong(f"{text}, and its connection lives")
    soon = audit.core.facts.now - audit.setting.bounds.away_for(len(audit.rows))
    parted = [row for s, row in audit.rows.items() if audit.core.facts.roster.actors.get(s) is not row.actor]
    if " silent for " in text and any(row.mute and row.actor.tasks and row.heard_at > soon for row in parted):
        wrong(f"{text}, and its link may be cut for as long")
    if isinstance(audit.event, Lost) and not audit.event.dead and any(row.mute and row.actor.tasks for row in parted):
        wrong(f"{text}, after a silence in which its link may have been cut")
    if ran := re.search(r"in task \((\d+), (\d+)\);", text):
        task = (int(ran[1]), int(ran[2]))
        holding = audit.held.get(task)
        row = audit.rows.get(holding.session) if holding else None
        if holding is None or row is None or task in audit.folding or row.stuck or task[0] > row.held:
            wrong(f"{text}, which its worker had not begun")
        audit.fault(task, holding, blamed=True)


def _report(audit: Audit, report: Report) -> None:
    if report.kind == "aside":
        audit.books.aside += 1
        version, index = map(int, re.findall(r"\d+", report.text)[:2])
        audit.due.append(((version, index), "aside"))
        if audit.faults.get((version, index), 0) < audit.setting.bounds.attempts:
            wrong(f"{report.text}, and it failed {audit.faults.get((version, index), 0)} times")
    if report.kind == "away":
        for row in audit.rows.values():
            left = row.actor.away and not (row.away or row.mute)
            row.heard_at = audit.core.facts.now if left else row.heard_at
            row.away = row.actor.away
    if report.kind == "quarantine":
        for row in audit.rows.values():
            row.barred = row.actor.barred_until > 0
    if report.kind == "recall":
        for task in [task for task, one in audit.held.items() if one.owed and report.text.startswith(f"task {task},")]:
            given.recalled(audit, task, audit.held[task])
            audit.end(task, audit.held[task])
    if report.kind == "lost":
        for session, row in list(audit.rows.items()):
            if audit.core.facts.roster.actors.get(session) is not row.actor:
                present.part(audit, session, row)


def _pull(audit: Audit, effect: Pull) -> None:
    message = effect.message
    holding = audit.held.get(message.task)
    if holding is None or (holding.session, holding.attempt) != (effect.session, message.attempt):
        wrong(f"{effect} is of a task that {holding} has")
    audit.pulled[message.task] = holding


def _unpull(audit: Audit, effect: Unpull) -> None:
    if audit.pulled.pop(effect.task, None) is None:
        wrong(f"{effect}, which was never fetched")


def _fold(audit: Audit, effect: Fold) -> None:
    message, event, product = effect.message, audit.event, audit.product
    task = message.task
    holding = audit.held.get(task)
    if not isinstance(event, Heard) or holding is None or task in audit.folding:
        wrong(f"task {task} goes to the learner, and is nobody's or there already")
    row = audit.rows[event.envelope.session]
    if (holding.session, holding.attempt) != (event.envelope.session, message.attempt) or row.peer != event.peer:
        wrong(f"{message} is of a task that {holding} has")
    if effect.promised != (holding.owed is not None):
        wrong(f"{effect} is of {holding}")
    if not holding.owed and not task[0] <= message.made_from <= row.sent:
        wrong(f"{message} was made from what its actor was not sent for it")
    sound = 0 < message.weight < math.inf and 0 <= message.steps < 2**53
    if event.fault or not sound or not all(0 <= count < math.inf for _, count in message.totals.values()):
        wrong(f"{message} goes to the learner")
    if effect.clients != holding.clients or told(effect.task) != holding.told:
        wrong(f"{effect} is of {holding}")
    if holding.counts:
        audit.books.fits(effect, product, holding.handout)
    if row.evaluates and (holding.counts or message.layout):
        wrong(f"an evaluator's {message} goes to the learner")
    audit.answers += 1
    if not event.whole:
        wrong(f"{message} goes to the learner without its arrays")
    audit.pulled.pop(task, None)
    if holding.took >= 0:
        audit.took.setdefault(holding.told[0], deque(maxlen=99)).append(holding.took)
    audit.folding[task] = taken = Taken(
        task, holding, row.actor, effect.onto, message.steps, product if holding.counts else None
    )
    if holding.counts:
        audit.books.taken[taken.number] = taken


def _step(audit: Audit, effect: Step) -> None:
    version, at = audit.promised_at
    began = at if version == audit.core.facts.version else audit.plan.began
    audit.books.step(effect, audit.folding.values(), audit.core.facts.now - began)


EFFECTS: Mapping[type[Any], Callable[[Audit, Any], None]] = {
    Send: _send,
    SendTask: _send,
    Brief: given.brief,
    SendWeights: present.weights,
    Admit: present.admit,
    Pull: _pull,
    Unpull: _unpull,
    Fold: _fold,
    Step: _step,
    Report: _report,
    Gone: present.gone,
    Finish: present.finish,
}
