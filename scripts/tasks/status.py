"""A pool in words: who does what, and why the rest waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from shoal.coordinator.deciding.ledger import Lease
from shoal.tasks.running import Running


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
    facts, plan, now = running.core.facts, running.plan, time.monotonic()
    busy = 0
    for actor in facts.roster.actors.values():
        leases = sorted((facts.ledger.leases[name] for name in actor.tasks), key=lambda lease: lease.since)
        busy += bool(leases)
        yield f"{actor.name}: {_at(running, leases, now) if leases else 'waits for calls'}"
    if running.actors > len(facts.roster):
        yield f"{running.actors - len(facts.roster)} of {running.actors} actors are starting"
    if plan.waiting:
        first = plan.waiting[0][1]
        why = f"{busy} of {running.actors} actors are busy"
        if lacks := running.machine.lacks(first.need):
            why = f"it needs {first.need}, and there are not enough {' and '.join(sorted(lacks))} left; {why}"
        yield f"{len(plan.waiting)} calls wait, the first of {first.function} for {now - first.since:.1f} s: {why}"
    if plan.full:
        yield f"{len(plan.full)} calls of a map wait until results that are there are taken from its iterator"


def _at(running: Running, leases: list[Lease], now: float) -> str:
    given = [running.plan.given[lease.task.index].tickets for lease in leases if lease.task.index in running.plan.given]
    many = sum(map(len, given))
    name = next((ticket.function for tickets in given for ticket in tickets.values()), "a call")
    return f"{name} for {now - leases[0].since:.1f} s" + f", and {many - 1} calls more" * (many > 1)
