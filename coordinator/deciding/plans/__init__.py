"""Schedules: who does what next, what is fresh enough, when to step. Pure: no arrays, no clock, no sockets."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from shoal.protocol.work import Task


@dataclass(frozen=True, slots=True)
class Asked:
    """What earlier lives of a run asked for, so that a schedule does not ask for it again.

    drawn: how many tasks, of all versions. done: version -> clients whose contributions are folded in, or promised. first:
    version -> the lowest index that no task of it has had.
    """

    drawn: int = 0
    done: Mapping[int, Collection[int]] = field(default_factory=dict)
    first: Mapping[int, int] = field(default_factory=dict)


AFRESH = Asked()  # a run that begins


class Plan(Protocol):
    """A run's schedule. `now` is in seconds of a monotonic clock that is handed in."""

    def assign(self, idle: int, version: int, now: float) -> Sequence[Task]:
        """At most `idle` new tasks against `version`. Tasks of dead actors are handed out again by the core, not here."""
        ...

    def admits(self, made_from: int, version: int) -> bool:
        """Is a contribution made from `made_from` fresh enough to be folded into what follows `version`?"""
        ...

    def enough(self, folded: int, outstanding: int, version: int, now: float) -> bool:
        """Do `folded` clients' contributions suffice for a step, `outstanding` more being on their way?"""
        ...
