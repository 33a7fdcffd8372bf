"""Schedules: who does what next, what is fresh enough, when to step. Pure: no arrays, no clock, no sockets."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from shoal.protocol.work import Task, Totals


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
NEWS = 10_000  # outcomes that are kept for a plan that is not asked for a while


@dataclass(frozen=True, slots=True)
class Seat:
    """An actor that has room. free: tasks that it can take now. width: how many clients it can work for at the same time."""

    actor: int
    free: int
    width: int = 1


class Seats:
    """Where tasks can go now; good until the plan returns. room: free places of all actors together, known without a look at
    each. Iterating gives a Seat for each actor that has room, the least busy first."""

    __slots__ = ("_each", "room")

    def __init__(self, room: int, each: Callable[[], Iterable[Seat]] = tuple) -> None:
        self.room, self._each = room, each

    def __iter__(self) -> Iterator[Seat]:
        return iter(self._each())


class Outcome(NamedTuple):
    """What became of a task that was given out.

    word: "accepted", "stale" or "aside" (tried too often), which are final; "refused" or "failed" (its worker raised) of an
    attempt, after which the task is tried again or set aside. seconds: since it was given to its actor, 0 if it was not.
    totals: those of the contribution, where it was accepted or stale.
    """

    task: Task
    word: str
    seconds: float
    totals: Totals


class Plan(Protocol):
    """A run's schedule. `now` is in seconds of a monotonic clock that is handed in."""

    def assign(self, seats: Seats, news: Sequence[Outcome], version: int, now: float) -> Sequence[Task]:
        """At most `seats.room` new tasks against `version`. Tasks of dead actors are handed out again by the core, not here.

        news: what became of tasks since the last call, oldest first; those before the last 10,000 are left out.
        """
        ...

    def admits(self, made_from: int, version: int) -> bool:
        """Is a contribution made from `made_from` fresh enough to be folded into what follows `version`?"""
        ...

    def enough(self, folded: int, outstanding: int, version: int, now: float) -> bool:
        """Do `folded` clients' contributions suffice for a step, `outstanding` more being on their way?"""
        ...
