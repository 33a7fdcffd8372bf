"""A contribution's claims about itself, checked against the lease it answers, before its arrays are looked at.

The one idea: an actor may claim anything about its own work, within its lease; no claim of an actor is about other actors.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.ledger import Lease
from shoal.protocol.errors import printable
from shoal.protocol.messages import Contribute

SLACK = 10.0  # seconds by which an actor's clock and the coordinator's may differ over one task

LARGEST = 2.0**500  # most of a figure, in absolute value: its square, and a sum of as many as can come, is still finite
LEAST = 2.0**-500  # least count that is not 0
LONGEST = 64  # characters of a metric's name
OF_A_KEY, OF_ALL = 128, 1_024  # names of metrics that a run keeps of strangers: those that one key brought first, and all
T = TypeVar("T")


class Figures:
    """The figures of contributions, totals and samples, that a run's statistics take. A figure that is no good is dropped, and
    the contribution is not refused for it: statistics touch no weights. local: the users who may bring any number of
    names, because they are this user's own."""

    def __init__(self, local: Container[str] = ()) -> None:
        self.local = local
        self.names: set[str] = set()
        self._brought: Counter[str] = Counter()

    def sound(self, message: Contribute, user: str) -> tuple[Contribute, str]:
        """Return the message without the figures that are no good, and why the first of them is not; "" if all are good."""
        if self._plain(message):
            return message, ""
        faults: list[str] = []
        totals = self._good(message.totals, lambda pair: _within(pair[0]), user, faults)
        samples = self._good(message.samples, lambda values: all(map(_within, values)), user, faults)
        return (replace(message, totals=totals, samples=samples), faults[0]) if faults else (message, "")

    def _plain(self, message: Contribute) -> bool:
        """Return whether all figures are good and their names known. Nearly every contribution passes here, the quicker way."""
        names = self.names
        for name, (total, _) in message.totals.items():
            if name not in names or not -LARGEST <= total <= LARGEST:
                return False
        samples = message.samples
        return not samples or all(name in names and _all_within(values) for name, values in samples.items())

    def _good(self, figures: Mapping[str, T], fits: Callable[[T], bool], user: str, faults: list[str]) -> Mapping[str, T]:
        good: dict[str, T] = {}
        for name, figure in figures.items():
            if not fits(figure):
                faults.append(f"{printable(name, LONGEST)!a} is not finite, or above 2**500")
            elif name in self.names or self._admit(name, user):
                good[name] = figure
            else:
                most = f"at most {LONGEST} characters, and {OF_A_KEY} names of one key or {OF_ALL} of all are kept"
                faults.append(f"{printable(name, LONGEST)!a} is one name of a metric too many, or too long: {most}")
        return good

    def _admit(self, name: str, user: str) -> bool:
        if not (len(name) <= LONGEST and name.isprintable()):
            return False
        if user not in self.local:
            if not (self._brought[user] < OF_A_KEY and self._brought.total() < OF_ALL):
                return False
            self._brought[user] += 1
        self.names.add(name)
        return True


def _all_within(figures: Sequence[float]) -> bool:
    """Return whether all figures are good. A sum is NaN if one of them is, which `min` and `max` may not show."""
    return not figures or (min(figures) >= -LARGEST and max(figures) <= LARGEST and not math.isnan(sum(figures)))


def _within(figure: float) -> bool:
    return -LARGEST <= figure <= LARGEST  # NaN is not


def amiss(lease: Lease, message: Contribute, sent: int, bounds: Bounds, now: float) -> str:
    """Return the fault of a contribution's claims, "" if there is none. sent: newest version that went to its actor."""
    if lease.promise:
        if (message.made_from, message.digest) != (lease.promise.made_from, lease.promise.digest):
            return f"it is not what was accepted before the restart: digest {message.digest[:16]!a}"
    elif not lease.task.version <= message.made_from <= sent:
        return f"made_from {message.made_from} is not a version this actor was sent for the task"
    if not 0 < message.weight < math.inf:
        return f"weight {message.weight} is not a finite number above 0"
    for _, count in message.totals.values():
        if not (count == 0 or LEAST <= count <= LARGEST):
            return "a count in its totals is not 0, or a number from 2**-500 to 2**500"
    if not 0 <= message.steps < 2**53:
        return "its number of steps is out of range"
    if lease.counts and bounds.steps:
        if message.steps > (most := bounds.steps * len(lease.clients)):
            return f"{message.steps} steps, where its task has {most} at most"
        if any(len(values) > message.steps for values in message.samples.values()):
            return f"more samples than its {message.steps} steps"
    if not (0 <= message.trained <= LARGEST and 0 <= message.waited <= LARGEST):
        return "the times it took are not finite numbers from 0"
    if not lease.promise and message.trained > now - lease.given_at + SLACK:
        return f"{message.trained:g} s of work, but its actor has had the task for {now - lease.given_at:g} s"
    if lease.counts and message.summed != (bounds.summed and message.layout != ""):
        return "a sum over clients where none is asked for, or none where one is"
    if lease.counts and bounds.retain and not message.digest:
        return "no digest, by which it is known again if it is asked for once more"
    return ""
