"""A contribution's claims about itself, checked against the lease it answers, before its arrays are looked at.

The one idea: an actor may claim anything about its own work, within its lease; no claim of an actor is about other actors.
"""

from __future__ import annotations

import math

from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.ledger import Lease
from shoal.protocol.messages import Contribute

SLACK = 10.0  # seconds by which an actor's clock and the coordinator's may differ over one task


def amiss(lease: Lease, message: Contribute, sent: int, bounds: Bounds, now: float) -> str:
    """Return the fault of a contribution's claims, "" if there is none. sent: newest version that went to its actor."""
    if lease.promise:
        if (message.made_from, message.digest) != (lease.promise.made_from, lease.promise.digest):
            return f"it is not what was accepted before the restart: digest {message.digest[:16]!a}"
    elif not lease.task.version <= message.made_from <= sent:
        return f"made_from {message.made_from} is not a version this actor was sent for the task"
    if not (math.isfinite(message.weight) and message.weight > 0):
        return f"weight {message.weight} is not a finite number above 0"
    if not all(math.isfinite(count) and count >= 0 for _, count in message.totals.values()):
        return "a count in its totals is not a finite number from 0"
    if not 0 <= message.steps < 2**53:
        return "its number of steps is out of range"
    if lease.counts and bounds.steps:
        if message.steps > (most := bounds.steps * len(lease.clients)):
            return f"{message.steps} steps, where its task has {most} at most"
        if any(len(values) > message.steps for values in message.samples.values()):
            return f"more samples than its {message.steps} steps"
    if not (0 <= message.trained < math.inf and 0 <= message.waited < math.inf):
        return "the times it took are not finite numbers from 0"
    if not lease.promise and message.trained > now - lease.since + SLACK:
        return f"{message.trained:g} s of work, but its actor has had the task for {now - lease.since:g} s"
    if lease.counts and message.summed != (bounds.summed and message.layout != ""):
        return "a sum over clients where none is asked for, or none where one is"
    if lease.counts and bounds.retain and not message.digest:
        return "no digest, by which it is known again if it is asked for once more"
    return ""
