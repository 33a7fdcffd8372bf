"""The desk, where tasks go out to actors and come back unfinished.

The one idea: a task is in one place at a time: with the plan, under a lease, parked until its actor has room, or returned; and
the function that takes a task from one place puts it into the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from shoal.coordinator.deciding.events import Brief, Briefed, Effect, SendTask, Unbrief, Unpull
from shoal.coordinator.deciding.ledger import TRIES, Lease
from shoal.coordinator.deciding.roster import Actor
from shoal.coordinator.reports import Report
from shoal.protocol.codec import words_fault
from shoal.protocol.errors import UserError
from shoal.protocol.messages import Assign, Cancel, TaskName
from shoal.protocol.work import Task

if TYPE_CHECKING:
    from shoal.coordinator.deciding.core import Core


def employ(core: Core) -> Iterator[Effect]:
    if core.stepping and not core.plan.admits(core.version, core.version + 1):
        return  # a synchronous round is closing: a task given out now would be stale
    if not _gathered(core):
        return
    while core.ledger.returned and core.roster.room:
        yield from _place(core, *core.ledger.returned.popleft())
    draws = len(core.roster)  # drawn tasks may be for busy actors, and leave the others idle
    while draws and core.roster.room and (tasks := _new(core)):
        draws -= 1
        for task in tasks:
            if task.words and (fault := words_fault(task.words)):
                raise UserError(f"the words of a task must be plain data; those of task {task.version, task.index} are {fault}")
            core.drawn += 1
            yield from _place(core, task, 0)


def _new(core: Core) -> Sequence[Task]:
    """Return the plan's next tasks, and tell the plan the outcomes of earlier ones."""
    core.seats.room, news = core.roster.room, core.ledger.news
    told = tuple(news)
    news.clear()
    return core.plan.assign(core.seats, told, core.version, core.now)


def _gathered(core: Core) -> bool:
    """Return whether tasks may go out: the first actors must not get all the clients, which then stay with them."""
    core.gathering = core.gathering and len(core.roster) < core.rules.gather and core.now - core.began < core.rules.patience
    return not core.gathering


def _place(core: Core, task: Task, tried: int) -> Iterator[Effect]:
    sticky = core.rules.sticky and task.counts and task.clients
    actor = core.roster.home(task.clients[0]) if sticky else core.roster.idlest()
    if actor is not None and len(actor.tasks) < actor.capacity:
        yield _give(core, actor, task, tried)
    elif actor is not None:
        actor.parked.append((task, tried))
        core.ledger.parked += 1
    else:
        core.ledger.returned.append((task, tried))


def _give(core: Core, actor: Actor, task: Task, tried: int) -> Effect:
    clients = task.clients or (actor.number,)  # a task without clients is for the actor's own environments
    attempt = core.epoch * TRIES + tried + 1
    lease = Lease(task, clients, attempt, actor.session, core.now)
    core.ledger.leases[lease.name] = lease
    core.roster.burden(actor, lease.name)
    if core.rules.briefs:
        lease.briefing = True
        return Brief(task if task.clients else replace(task, clients=clients), attempt)
    return tell(core, actor, lease)


def tell(core: Core, actor: Actor, lease: Lease) -> Effect:
    """Return the effect that tells the actor its task."""
    said = core.say(actor, assign(core, lease))
    return SendTask(said.peer, said.envelope) if lease.brief else said


def briefed(core: Core, event: Briefed) -> Iterator[Effect]:
    """Tell the actor its task now that the brief is made, and begin the lease's time."""
    lease = core.ledger.leases.get(event.task)
    if lease is None or lease.attempt != event.attempt:
        yield Unbrief(event.task, event.attempt)
        return
    lease.briefing = False
    core.ledger.renew(lease, core.now)
    if event.layout:
        lease.brief, lease.nbytes, lease.left = event, event.nbytes, event.nbytes
    yield tell(core, core.roster.actors[lease.session], lease)  # an actor that is away is told again when it comes back


def unbrief(lease: Lease) -> Iterator[Effect]:
    if lease.brief:
        lease.brief = None
        yield Unbrief(lease.name, lease.attempt)


def assign(core: Core, lease: Lease) -> Assign:
    summed = core.rules.summed and lease.counts
    task, layout, nbytes = lease.task, *((lease.brief.layout, lease.brief.nbytes) if lease.brief else ("", 0))
    name, exact = lease.name, core.rules.exact
    return Assign(name, lease.attempt, lease.clients, task.kind, summed, exact, task.counts, task.words, layout, nbytes)


def stalls(core: Core) -> bool:
    """Return True, and let one actor hold one task more, if all leases wait for a version that no actor works on, because a
    contribution to it was refused."""
    ledger = core.ledger
    if not core.starves() or ledger.counts.folding < len(ledger.leases):
        return False
    for lease in ledger.leases.values():
        if (actor := core.roster.actors.get(lease.session)) and not actor.idles:
            core.roster.allow(actor, len(actor.tasks) + 1)
            return True
    return False


def unburden(core: Core, actor: Actor, name: TaskName) -> None:
    core.roster.unburden(actor, name)
    if actor.parked and len(actor.tasks) < actor.capacity:
        core.ledger.returned.append(actor.parked.popleft())
        core.ledger.parked -= 1


def unpark(core: Core) -> None:
    """Free all tasks that wait for room at one actor for any actor."""
    for actor in core.roster.actors.values() if core.ledger.parked else ():
        core.ledger.unpark(actor)


def revoke(core: Core, lease: Lease) -> Iterator[Effect]:
    """Tell the lease's actor that it may stop; a contribution that still comes is stale."""
    if actor := core.roster.actors.get(lease.session):
        unburden(core, actor, lease.name)
        yield core.say(actor, Cancel(lease.name))


def end(core: Core, lease: Lease) -> Iterator[Effect]:
    """End a lease without a contribution that counts, and drop its arrays."""
    core.ledger.end(lease)
    yield from unbrief(lease)
    yield from unpull(core, lease)


def unpull(core: Core, lease: Lease) -> Iterator[Effect]:
    if lease.pulled:
        lease.pulled = False
        yield Unpull(lease.name)


def take_back(core: Core, lease: Lease, why: str, word: str = "") -> Iterator[Effect]:
    """End a lease unfinished; its task is tried again or set aside. word: the plan's Outcome of this attempt, "" for none."""
    yield from end(core, lease)
    if word:
        core.ledger.note(lease, word, core.now)
    if lease.promise:
        yield Report("recall", f"task {lease.name}, accepted before the restart, is to be done again: {why}", "warning")
    tries = 0 if lease.promise else lease.tries
    if tries < core.rules.attempts:
        to = core.ledger.returned if lease.task.version <= core.version else core.ledger.later
        to.extend((task, tries) for task in lease.task.apart())
        return
    core.ledger.counts.aside += 1
    core.ledger.note(lease, "aside", core.now)
    clients = ", ".join(map(str, lease.clients))
    yield Report("aside", f"task {lease.name} (clients {clients}) set aside after {lease.tries} attempts: {why}", "error")
    if core.rules.on_failure == "stop":
        yield from core.end(f"task {lease.name} failed {lease.tries} times: {why}", failed=True)


def close(core: Core) -> Iterator[Effect]:
    """Revoke the tasks of the round that closed, if the plan admits no lag (a synchronous round)."""
    if core.plan.admits(core.version - 1, core.version):
        return
    for lease in [one for one in core.ledger.leases.values() if one.task.version < core.version]:
        if not (lease.folding or lease.promise):
            yield from revoke(core, lease)
            yield from end(core, lease)
            core.ledger.note(lease, "stale", core.now)
    unpark(core)
    core.ledger.close(core.version)
