"""Schedules: the next tasks, the bound on lag, the time to step. Pure: no arrays, no clock, no sockets."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from shoal.protocol.work import Task, Totals


@dataclass(frozen=True, slots=True)
class Asked:
    """The tasks of a run's earlier lives, so that a schedule does not ask for them again, and what a schedule may know besides.

    drawn: number of tasks given out, of all versions. done: version -> clients whose contributions are folded in, or promised.
    first: version -> lowest index that none of its tasks has had. seconds: time that the earlier lives took. sizes: each
    client's number of examples; empty: not known, or not asked for.
    """

    drawn: int = 0
    done: Mapping[int, Collection[int]] = field(default_factory=dict)
    first: Mapping[int, int] = field(default_factory=dict)
    seconds: float = 0.0
    sizes: Sequence[int] = ()


AFRESH = Asked()  # for a run without earlier lives
NEWS = 10_000  # most outcomes that are kept between two calls of a plan


@dataclass(frozen=True, slots=True)
class Seat:
    """Room at an actor. actor: its number. free: tasks that it can take now. width: clients that it can work for at once.
    held: tasks that it has. user: the public key that the actor proved, 64 hexadecimal digits; "" if the run asks for none."""

    actor: int
    free: int
    width: int = 1
    held: int = 0
    user: str = ""


class Seats:
    """The actors that have room now; valid until the plan returns. room: tasks that all actors together can take, known
    without a look at each actor. evaluations: evaluations that evaluators, actors which do nothing else, can begin now, beside
    `room`; None if no evaluator is here, and an evaluation takes room of an actor that trains. Iterating gives a Seat for each
    actor that has room, the least busy first."""

    __slots__ = ("_each", "evaluations", "room")

    def __init__(self, room: int, each: Callable[[], Iterable[Seat]] = tuple, evaluations: int | None = None) -> None:
        self.room, self._each, self.evaluations = room, each, evaluations

    def __iter__(self) -> Iterator[Seat]:
        return iter(self._each())


class Outcome(NamedTuple):
    """The outcome of a task that was given out.

    word: "accepted", "stale" or "aside" (tried too often), which are final; "refused" or "failed" (its worker raised) of an
    attempt, after which the task is tried again or set aside. seconds: time since an actor got the task, 0 if none has it.
    totals: of the contribution, if it was accepted or stale; else empty.
    """

    task: Task
    word: str
    seconds: float
    totals: Totals


def wakes(plan: Plan, version: int, now: float) -> float:
    """Return the first time after `now` at which this plan may answer otherwise although nothing has happened; inf: none."""
    asked = getattr(plan, "wakes", None)
    return float(asked(version, now)) if callable(asked) else math.inf


def evaluate_every(plan: Plan) -> int:
    """Return the versions from one evaluation by an actor to the next; 0: this plan gives none; 1 if the plan does not say."""
    return int(getattr(plan, "evaluate_every", 1))


class Plan(Protocol):
    """A run's schedule. `now` is in seconds of a monotonic clock that is handed in.

    A plan may have one method more, `wakes(version, now) -> float`: the first time after `now` at which the plan may answer
    otherwise than now although nothing has happened (a deadline, a client that comes back); inf: there is none.
    """

    def assign(self, seats: Seats, news: Sequence[Outcome], version: int, now: float) -> Sequence[Task]:
        """Return at most `seats.room` new tasks against `version`, and evaluations besides if evaluators are here. The core
        hands out the tasks of dead actors again.

        news: outcomes of tasks since the last call, oldest first; only the last NEWS (10,000) are kept.
        """
        ...

    def admits(self, made_from: int, version: int) -> bool:
        """Return whether a contribution made from `made_from` may be folded into the step after `version`."""
        ...

    def enough(self, folded: int, outstanding: int, version: int, now: float) -> bool:
        """Return whether `folded` clients' contributions suffice for a step while `outstanding` tasks are out."""
        ...
