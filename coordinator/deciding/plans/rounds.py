"""Synchronous rounds: a cohort works on one version, and its contributions make the next.

The one idea: the cohort of a round is drawn from (seed, version) alone, so that it is the same for any number of actors,
after any crash, and for any number of registered clients. Only a selection that looks at the outcomes of tasks gives that up.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from shoal.coordinator.deciding.plans import AFRESH, NEWS, Asked, Outcome, Seats, selection
from shoal.coordinator.deciding.plans.selection import Select
from shoal.protocol.work import Task

MOST_CLIENTS = 500  # most clients in one task: its message stays small, and a lost actor costs little


class Rounds:
    """FedAvg's schedule (McMahan et al. 2017, Algorithm 1), and that of synchronous reinforcement learning.

    clients: number of clients. cohort: clients drawn for a round, without replacement (0: all, in order). select: function
    that draws them (plans/selection.py; None: `uniform`). quorum: clients that suffice after the deadline (0: the cohort).
    deadline: seconds from the start of a round to its cut (0: no cut). summed: one task may hold several clients, whose
    weighted sum comes back. evaluate_every: versions from one evaluation to the next (0: none). evaluate_cohort: clients that
    score the weights then. asked: tasks of earlier lives.
    """

    def __init__(
        self,
        clients: int,
        cohort: int = 0,
        *,
        quorum: int = 0,
        deadline: float = 0.0,
        seed: int = 0,
        summed: bool = False,
        evaluate_every: int = 0,
        evaluate_cohort: int = 0,
        asked: Asked = AFRESH,
        select: Select | None = None,
    ) -> None:
        self.clients, self.cohort = clients, cohort or clients
        self.quorum, self.deadline = quorum or self.cohort, deadline
        self.seed, self.summed = seed, summed
        self.evaluate_every, self.evaluate_cohort = evaluate_every, evaluate_cohort
        self.asked = asked
        self.select = selection.checked(select, clients) if select else selection.uniform(clients, seed)
        self.evaluators = selection.uniform(clients, seed, "evaluate")
        self.news: deque[Outcome] = deque(maxlen=NEWS if select else 0)  # outcomes since the last round began
        self.version = -1
        self.began = 0.0
        self.train: list[int] = []
        self.evaluate: Sequence[int] = ()
        self.issued = 0

    def assign(self, seats: Seats, news: Sequence[Outcome], version: int, now: float) -> Sequence[Task]:
        self.news.extend(news)
        if version != self.version:
            self._begin(version, now)
        tasks: list[Task] = []
        while len(tasks) < seats.room and (task := self._next(seats.room - len(tasks))):
            tasks.append(task)
        return tasks

    def admits(self, made_from: int, version: int) -> bool:
        return made_from == version

    def enough(self, folded: int, outstanding: int, version: int, now: float) -> bool:
        if version != self.version or folded == 0:
            return False
        all_out = self.issued == len(self.train) + len(self.evaluate)
        cut = 0 < self.deadline <= now - self.began and folded >= self.quorum
        return (all_out and outstanding == 0) or cut

    def _begin(self, version: int, now: float) -> None:
        self.version, self.began, self.issued = version, now, 0
        done = self.asked.done.get(version, ())
        self.train = [client for client in self.select(version, self.cohort, tuple(self.news)) if client not in done]
        self.news.clear()
        due = self.evaluate_every and version % self.evaluate_every == 0
        self.evaluate = self.evaluators(version, min(self.clients, self.evaluate_cohort), ()) if due else ()

    def _next(self, idle: int) -> Task | None:
        """Return the next task of the round, None if there is none. A summed cohort is cut into as many tasks as there is room
        for, because each task costs a message and a thread's waking; further tasks go out when actors have room again."""
        left = len(self.train) - self.issued
        if left > 0:
            size = min(MOST_CLIENTS, math.ceil(left / idle)) if self.summed else 1
            return self._task(self.train[self.issued : self.issued + size], "train", True)
        at = self.issued - len(self.train)
        return self._task(self.evaluate[at : at + 1], "evaluate", False) if at < len(self.evaluate) else None

    def _task(self, clients: Sequence[int], kind: str, counts: bool) -> Task:
        task = Task(self.version, self.asked.first.get(self.version, 0) + self.issued, tuple(clients), kind, counts)
        self.issued += len(clients)
        return task
