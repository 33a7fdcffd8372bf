"""The stall doctor's diagnosis: what a run that stands still stands in.

The one idea: a person who waits wants the culprit, its last state and its stack, once. What a task of its kind usually takes is
no stall, so the time after which a run counts as stalled follows what tasks and steps took.
"""

from __future__ import annotations

import math
from statistics import median
from typing import NamedTuple

from shoal.coordinator.deciding.actor import Actor
from shoal.coordinator.deciding.doing import doing, stack
from shoal.coordinator.deciding.facts import Facts
from shoal.coordinator.deciding.ledger import Lease
from shoal.coordinator.deciding.patience import awaited, unasked
from shoal.coordinator.deciding.plans import wakes

STALL = 10.0  # seconds without progress after which a run is stalled, at least
USUAL = 3.0  # times what a task or a step usually takes, after which it counts as stalled


class Stall(NamedTuple):
    """A run that stands still. text: the line for a person, which names the culprit and its state. stack: of the culprit; "" if
    it is not known here. learner: the culprit is the learner, whose stack this process can look at."""

    text: str
    stack: str = ""
    learner: bool = False


def diagnosed(facts: Facts, now: float, step: float = 0.0) -> Stall | None:
    """Return the diagnosis of a run that has stood still for long; None if it has not, or if it waits for nothing that can
    hang: an actor to join, a client to come back. step: seconds that the last step took."""
    stood = now - facts.moved_at
    if stood <= STALL or facts.bounds.endless or facts.ended:
        return None
    still = f"nothing moves for {stood:.0f} s"
    out = [lease for lease in facts.ledger.leases.values() if lease.session in facts.roster.actors and not lease.promise]
    if facts.stepping or (out and all(lease.folding for lease in out)):
        what = f"the step to version {facts.version + 1}" if facts.stepping else "contributions that are here"
        return Stall(f"{still}: the learner, in learn, at {what}", learner=True) if stood > USUAL * step else None
    if not out:
        return _unasked(facts, now, still)
    at_work = [(facts.roster.actors[lease.session], lease) for lease in out if not lease.folding]
    actor, lease = next((one for one in at_work if doing(*one)), at_work[0])
    if stood <= USUAL * median(facts.ledger.took.get(lease.task.kind) or (0.0,)):
        return None
    where = f", in {state}" if (state := _state(actor, lease)) else ""
    return Stall(f"{still}: {awaited(facts, actor, lease)}{where}", stack(actor, lease))


def _state(actor: Actor, lease: Lease) -> str:
    """Return the word for what a task waits for that is not its worker; "" if it is with its worker."""
    if lease.pulled:
        return "send"
    return "wait_weights" if actor.under_way and lease.task.version > actor.held else ""


def _unasked(facts: Facts, now: float, still: str) -> Stall | None:
    """Return the diagnosis of a run whose actors have no task although nothing outside could bring one."""
    if not facts.roster or facts.gathering or wakes(facts.plan, facts.version, now) < math.inf:
        return None
    return Stall(f"{still}: {unasked(facts)}; the actors are in wait_credit")
