"""A plan whose tasks bring words along, such as the epsilon of an actor's exploration.

The one idea: the words of a task are a function of the task alone, so that a task that is given out again has the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from shoal.coordinator.deciding.plans import Outcome, Plan, Seats, evaluate_every, wakes
from shoal.protocol.work import Task, Words


class Worded:
    """Another plan, whose tasks have the words of `words(task)` besides their own."""

    def __init__(self, plan: Plan, words: Callable[[Task], Words]) -> None:
        self.plan, self.words = plan, words
        self.evaluate_every = evaluate_every(plan)

    def assign(self, seats: Seats, news: Sequence[Outcome], version: int, now: float) -> Sequence[Task]:
        tasks = self.plan.assign(seats, news, version, now)
        return [replace(task, words={**task.words, **self.words(task)}) for task in tasks]

    def admits(self, made_from: int, version: int) -> bool:
        return self.plan.admits(made_from, version)

    def enough(self, folded: int, outstanding: int, version: int, now: float) -> bool:
        return self.plan.enough(folded, outstanding, version, now)

    def wakes(self, version: int, now: float) -> float:
        return wakes(self.plan, version, now)
