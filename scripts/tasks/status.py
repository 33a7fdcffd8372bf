"""A pool in words: who does what, and why the rest waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from shoal.coordinator.deciding.near import Near
from shoal.tasks.running import Running

if TYPE_CHECKING:
    from shoal.tasks.far import Far


def told(running: Running) -> str:
    """A line for each actor, and lines on the calls that wait, as one text."""
    ready = threading.Event()
    lines: list[str] = []

    def act() -> None:
        lines.extend(_lines(running) if running.is_alive() else ())
        ready.set()

    if running.ask(act):
        ready.wait()
    return "\n".join(lines) or f"the pool has ended: {running.fault}"


def _lines(running: Running) -> Iterator[str]:
    plan, now = running.plan, time.monotonic()
    actors = list(_near(running.near.near) if running.near else _far(running.far) if running.far else ())
    for name, indices, since in actors:
        yield f"{name}: {_at(running, indices, now - since) if indices else 'waits for calls'}"
    here = len(actors) if running.near else sum(map(running.far.ours, running.far.actors())) if running.far else 0
    if running.actors > here:
        yield f"{running.actors - here} of {running.actors} actors are starting"
    if running.door and here == len(actors):
        yield f"no actor has joined from elsewhere; on another machine type: {running.door.line(running.address)}"
    if running.near and running.near.short:
        yield f"no further process can join: {running.near.short}"
    for host, why in running.far.closed() if running.far else ():
        yield f"machine {host}: {why}"
    if plan.closed:
        yield plan.closed
    if plan.waiting:
        first = plan.waiting[0][1]
        why = f"{sum(bool(indices) for _, indices, _ in actors)} of {max(running.actors, len(actors))} actors are busy"
        machines = running.machines()
        if machines and (lacks := frozenset.intersection(*(one.lacks(first.need) for one in machines))):
            why = f"it needs {first.need}, and there are not enough {' and '.join(sorted(lacks))} left; {why}"
        yield f"{len(plan.waiting)} calls wait, the first of {first.function} for {now - first.since:.1f} s: {why}"
    if plan.full:
        yield f"{len(plan.full)} calls of a map wait until results that are there are taken from its iterator"


def _near(near: Near) -> Iterator[tuple[str, list[int], float]]:
    """The name of each actor, the indices of its tasks, and when it began with the first."""
    for pid, actor in near.actors.items():
        yield f"actor-{pid}", [out.task.index for out in actor.tasks], actor.since


def _far(far: Far) -> Iterator[tuple[str, list[int], float]]:
    facts = far.core.facts
    for actor in far.actors():
        leases = sorted((facts.ledger.leases[name] for name in actor.tasks), key=lambda lease: lease.since)
        yield actor.name, [lease.task.index for lease in leases], leases[0].since if leases else 0.0


def _at(running: Running, indices: list[int], seconds: float) -> str:
    given = [running.plan.given[index].tickets for index in indices if index in running.plan.given]
    many = sum(map(len, given))
    name = next((ticket.function for tickets in given for ticket in tickets.values()), "a call")
    return f"{name} for {seconds:.1f} s" + f", and {many - 1} calls more" * (many > 1)
