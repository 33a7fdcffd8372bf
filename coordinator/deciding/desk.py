"""The desk, where tasks go out to actors and come back unfinished.

The one idea: a task is in one place at a time: with the plan, under a lease, parked until its actor has room, returned, or an
evaluation that waits for an evaluator; and the function that takes a task from one place puts it into the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from shoal.coordinator.deciding.actor import DROPPED, Actor, Pending
from shoal.coordinator.deciding.events import Brief, Briefed, Effect, Evict, SendTask, Unpull
from shoal.coordinator.deciding.facts import Facts
from shoal.coordinator.deciding.ledger import TRIES, VAIN, Lease
from shoal.coordinator.reports import Report
from shoal.protocol.codec import words_fault
from shoal.protocol.errors import UserError, printable
from shoal.protocol.messages import Assign, Cancel, GiveUp, TaskName
from shoal.protocol.work import Task


def employ(facts: Facts) -> Iterator[Effect]:
    if facts.stepping and not facts.plan.admits(facts.version, facts.version + 1):
        return  # a synchronous round is closing: a task given out now would be stale
    if not _gathered(facts):
        return
    yield from _evaluate(facts)
    while one := _next(facts):
        yield from _place(facts, one)
    draws = len(facts.roster)  # drawn tasks may be for busy actors, and leave the others idle
    while draws and facts.roster.contributors.room and (tasks := _new(facts)):
        draws -= 1
        for task in tasks:
            if fault := _fault(facts, task):
                raise UserError(f"the plan {type(facts.plan).__name__} gave {printable(repr(task), 200)}: {fault}")
            facts.drawn += 1
            yield from _begin(facts, Pending(task, alone=task.alone))


def evaluation(facts: Facts) -> Pending | None:
    """Return the evaluation that an idle evaluator is to do next; None if no evaluation waits, or no evaluator is idle. An
    evaluation that failed is for evaluators only while no actor that contributes is here."""
    ledger = facts.ledger
    if not facts.roster.evaluators.idle:
        return None
    if ledger.evaluations:
        return ledger.evaluations[0]
    return None if facts.roster else next((one for one in ledger.returned if not one.task.counts), None)


def _evaluate(facts: Facts) -> Iterator[Effect]:
    """Give each idle evaluator the next evaluation."""
    while one := evaluation(facts):
        (facts.ledger.evaluations or facts.ledger.returned).remove(one)
        yield _give(facts, next(iter(facts.roster.evaluators.idle.values())), one)


def _begin(facts: Facts, one: Pending) -> Iterator[Effect]:
    """Place a task that the plan has just given: an evaluation among those that wait for evaluators, if there are any who can
    be given one."""
    if one.task.counts or not facts.roster.evaluators.able:
        yield from _place(facts, one)
    else:
        facts.ledger.put_back(one)
        yield from _evaluate(facts)


def _next(facts: Facts) -> Pending | None:
    """Remove and return the next task that waits for an actor that contributes and has room: one that came back, or else an
    evaluation if no evaluator can be given any."""
    if not facts.roster.contributors.room:
        return None
    if facts.ledger.returned:
        return facts.ledger.returned.popleft()
    return facts.ledger.evaluations.popleft() if facts.ledger.evaluations and not facts.roster.evaluators.able else None


def _new(facts: Facts) -> Sequence[Task]:
    """Return the plan's next tasks, and tell the plan the outcomes of earlier ones."""
    facts.seats.room, news = facts.roster.contributors.room, facts.ledger.news
    facts.seats.evaluations = facts.roster.evaluators.room
    told = tuple(news)
    news.clear()
    given = facts.plan.assign(facts.seats, told, facts.version, facts.now)
    if not isinstance(given, list | tuple):
        name = type(facts.plan).__name__
        raise UserError(f"the plan {name} gave {printable(repr(given), 200)}: assign must return a list of Task, [] for none")
    return given


def _fault(facts: Facts, task: Any) -> str:
    """Return the fault of a task that the plan gave, as the end of a line for its author; "" if there is none."""
    if not isinstance(task, Task):
        return "assign must return a list of Task; Task(version, index, (client,)), say"
    if type(task.version) is not int or not 0 <= task.version <= facts.version:
        return f"version must be a whole number from 0 to {facts.version}, the newest version"
    if type(task.index) is not int or task.index < 0:
        return "index must be a whole number from 0"
    if type(task.clients) is not tuple or not all(type(client) is int and client >= 0 for client in task.clients):
        return "clients must be a tuple of whole numbers from 0; (3,), say, or () for no client"
    if type(task.kind) is not str or type(task.counts) is not bool or type(task.alone) is not bool:
        return "kind must be text; counts and alone True or False"
    if task.name in facts.ledger.leases:
        return f"task {task.name} is out already; (version, index) must be another for every task"
    fault = words_fault(task.words) if task.words else ""
    return f"words must be plain data; these are {fault}" if fault else ""


def _gathered(facts: Facts) -> bool:
    """Return whether tasks may go out: the first actors must not get all the clients, which then stay with them."""
    few, early = len(facts.roster) < facts.bounds.gather, facts.now - facts.began < facts.bounds.patience
    facts.gathering = facts.gathering and few and early
    return not facts.gathering


def _place(facts: Facts, one: Pending) -> Iterator[Effect]:
    """Give the task to an actor that contributes, or let it wait for room there."""
    task, contributors = one.task, facts.roster.contributors
    sticky = facts.bounds.sticky and task.counts and task.clients
    actor = contributors.home(task.clients[0]) if sticky else _for(facts, task)
    if actor is None:
        facts.ledger.put_back(one)
        return
    if one.alone and actor.alone is None:
        actor.alone = task.name
        facts.roster.allow(actor, actor.capacity)
    if len(actor.tasks) < actor.capacity or (actor.alone == task.name and _rests(facts, actor)):
        yield _give(facts, actor, one)
    else:
        actor.parked.append(one)
        facts.ledger.parked += 1


def _rests(facts: Facts, actor: Actor) -> bool:
    """Return whether the actor may have tasks and has done all its tasks, whose contributions are with the learner."""
    return not actor.idles and all(facts.ledger.leases[name].folding for name in actor.tasks)


def _for(facts: Facts, task: Task) -> Actor | None:
    """Return the actor with room that the plan named, if there is one with room of that number; else the next with room."""
    with_room = facts.roster.contributors.with_room
    named = (actor for actor in with_room() if actor.number == task.where) if task.where >= 0 else iter(())
    return next(named, None) or next(with_room(), None)


def _give(facts: Facts, actor: Actor, one: Pending) -> Effect:
    task = one.task
    clients = task.clients or (actor.client,)
    attempt = facts.epoch * TRIES + one.given + 1
    lease = Lease(task, clients, attempt, actor.session, facts.now, one.faults, one.alone, task.version <= actor.held)
    lease.held = actor.held
    facts.ledger.leases[lease.name] = lease
    facts.roster.burden(actor, lease.name)
    known = actor.briefed.issuperset(clients)
    if facts.bounds.briefs and not (facts.bounds.brief_once and (known or not lease.counts)):
        lease.briefing = True
        return Brief(replace(task, clients=clients, briefed=known), attempt)
    return tell(facts, actor, lease)


def tell(facts: Facts, actor: Actor, lease: Lease) -> Effect:
    """Return the effect that tells the actor its task."""
    said = facts.say(actor, assign(facts, lease))
    return SendTask(said.peer, said.envelope, lease.brief.arrays) if lease.brief else said


def briefed(facts: Facts, event: Briefed) -> Iterator[Effect]:
    """Tell the actor its task now that the brief is made, and begin the lease's time."""
    lease = facts.ledger.leases.get(event.task)
    if lease is None or lease.attempt != event.attempt:
        return  # the task is done, or another's
    lease.briefing = False
    if lease.counts:
        facts.roster.actors[lease.session].briefed.update(lease.clients)
    facts.ledger.renew(lease, facts.now)
    lease.given_at = facts.now
    if event.layout:
        lease.brief, lease.nbytes, lease.left = event, event.arrays.nbytes, event.arrays.nbytes
    yield tell(facts, facts.roster.actors[lease.session], lease)  # an actor that is away is told again when it comes back


def assign(facts: Facts, lease: Lease) -> Assign:
    task, name, exact = lease.task, lease.name, facts.bounds.exact
    summed = facts.bounds.summed and lease.counts
    brief = (lease.brief.layout, lease.brief.arrays.nbytes) if lease.brief else ("", 0)
    return Assign(name, lease.attempt, lease.clients, task.kind, summed, exact, task.counts, task.words, *brief)


def stalls(facts: Facts) -> bool:
    """Return True, and let one actor hold one task more, if all leases wait for a version that no actor works on, because a
    contribution to it was refused. A trial at that actor is over, or can begin: all tasks there are done."""
    ledger = facts.ledger
    evaluating = sum(not ledger.leases[name].folding for name in facts.roster.evaluators.tasks())
    if not facts.starves() or ledger.counts.folding + evaluating < len(ledger.leases):
        return False
    for lease in ledger.leases.values():
        if (actor := facts.roster.contributors.actors.get(lease.session)) and not actor.idles:
            facts.ledger.unpark(actor)
            actor.alone = None
            facts.roster.allow(actor, len(actor.tasks) + 1)
            return True
    return False


def unburden(facts: Facts, actor: Actor, name: TaskName) -> None:
    facts.roster.unburden(actor, name)
    if actor.capacity > facts.roster.most:  # it had one more while a version lacked a contribution
        facts.roster.allow(actor, max(facts.roster.most, len(actor.tasks)))
    survive(facts, actor, name)
    if actor.parked and len(actor.tasks) < actor.capacity:
        freed = actor.parked.popleft()
        facts.ledger.put_back(freed, first=True)  # a task to be tried alone needs this actor empty
        facts.ledger.parked -= 1
        survive(facts, actor, freed.task.name)  # another actor may get it


def survive(facts: Facts, actor: Actor, name: TaskName) -> None:
    """Let an actor have other tasks again if it was to try this task alone: the trial is over, or may be another actor's."""
    if actor.alone == name:
        actor.alone = None
        if not actor.idles:
            facts.roster.allow(actor, facts.bounds.ahead)


def unpark(facts: Facts) -> None:
    """Free all tasks that wait for room at one actor for any actor."""
    for actor in facts.roster.actors.values() if facts.ledger.parked else ():
        waited = actor.alone
        facts.ledger.unpark(actor)
        if waited and not actor.alone and not actor.idles:
            facts.roster.allow(actor, facts.bounds.ahead)


def revoke(facts: Facts, lease: Lease) -> Iterator[Effect]:
    """Tell the lease's actor that it may stop; a contribution that still comes is stale."""
    if actor := facts.roster.actors.get(lease.session):
        unburden(facts, actor, lease.name)
        actor.dropped = (*actor.dropped, (*lease.name, lease.attempt))[-DROPPED:]
        yield facts.say(actor, Cancel(lease.name))


def flag(facts: Facts, name: TaskName, calls: tuple[int, ...]) -> Iterator[Effect]:
    """Tell the actor that has a task that callers of these calls gave them up."""
    lease = facts.ledger.leases.get(name)
    if lease is not None and (actor := facts.roster.actors.get(lease.session)):
        yield facts.say(actor, GiveUp(name, calls))


def withdraw(facts: Facts, name: TaskName) -> Iterator[Effect]:
    """Forget a task, wherever it is; the actor that has it is ended. A task whose contribution is with the learner is done."""
    lease = facts.ledger.leases.get(name)
    if lease is not None and not lease.folding:
        actor = facts.roster.actors.get(lease.session)
        yield from revoke(facts, lease)
        yield from end(facts, lease)
        if actor is not None:
            yield Evict(actor.peer)
    unpark(facts)
    facts.ledger.drop(lambda task: task.name == name)


def end(facts: Facts, lease: Lease) -> Iterator[Effect]:
    """End a lease without a contribution that counts, and drop its arrays."""
    facts.ledger.end(lease)
    yield from unpull(facts, lease)


def unpull(facts: Facts, lease: Lease) -> Iterator[Effect]:
    if lease.pulled:
        lease.pulled = False
        yield Unpull(lease.name)


def take_back(
    facts: Facts, lease: Lease, why: str, word: str = "", *, fault: bool = True, alone: bool = False
) -> Iterator[Effect]:
    """End a lease unfinished; its task is tried again or set aside. word: the plan's Outcome of this attempt, "" for none.
    fault: the task is to blame. alone: try it alone next, because it may have ended its actor's process."""
    yield from end(facts, lease)
    if word:
        facts.ledger.note(lease, word, facts.now)
    if lease.promise:
        yield Report("recall", f"task {lease.name}, accepted before the restart, is to be done again: {why}", "warning")
    given, faults = (0, 0) if lease.promise else (lease.tries, lease.faults + fault)
    if faults < facts.bounds.attempts:
        again = [Pending(task, given, faults, alone or task.alone) for task in lease.task.apart()]
        if lease.task.version <= facts.version:
            facts.ledger.put_back(*again)
        else:
            facts.ledger.later.extend(again)
        return
    facts.ledger.counts.aside += 1
    facts.ledger.vain += lease.counts
    facts.ledger.left_out.update(dict.fromkeys(lease.clients, why))
    facts.ledger.note(lease, "aside", facts.now)
    clients = ", ".join(map(str, lease.clients))
    yield Report("aside", f"task {lease.name} (clients {clients}) set aside after {faults} attempts: {why}", "error")
    if facts.bounds.on_failure == "stop":
        yield from facts.end(f"task {lease.name} failed {faults} times: {why}", failed=True)
    elif facts.ledger.vain >= VAIN and not facts.bounds.endless and facts.plan.admits(facts.version, facts.version + 1):
        # A round ends when all its tasks are lost. A stream would go on with new tasks for ever.
        yield from facts.end(f"the last {VAIN} tasks all failed, each {faults} times; the last one: {why}", failed=True)


def close(facts: Facts) -> Iterator[Effect]:
    """Revoke the tasks of the round that closed, if the plan admits no lag (a synchronous round)."""
    if facts.plan.admits(facts.version - 1, facts.version):
        return
    late: list[int] = []
    for lease in [one for one in facts.ledger.leases.values() if one.task.version < facts.version]:
        if not (lease.folding or lease.promise):
            yield from revoke(facts, lease)
            yield from end(facts, lease)
            facts.ledger.note(lease, "stale", facts.now)
            late.extend(lease.clients if lease.counts else ())
    if late:
        shown = ", ".join(map(str, late[:8])) + ", ..." * (len(late) > 8)
        yield Report("dropped", f"version {facts.version} is made without {len(late)} clients that came too late: {shown}")
    unpark(facts)
    facts.ledger.close(facts.version)
