"""Synchronous rounds: a cohort works on one version, and its contributions make the next.

The one idea: the cohort of a round is drawn from (seed, version) alone, so that it is the same for any number of actors,
after any crash, and for any number of registered clients. Only a selection that looks at the outcomes of tasks gives that up.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from shoal.coordinator.deciding.plans import AFRESH, NEWS, Asked, Outcome, Seats, selection
from shoal.coordinator.deciding.plans.attendance import Attendance
from shoal.coordinator.deciding.plans.selection import Select
from shoal.protocol.work import Task

MOST_CLIENTS = 500  # most clients in one task: its message stays small, and a lost actor costs little
SOON = 0.25  # seconds for which an actor's share of a round may last to be one task: too few for the others to wait for it
FADES = 0.9  # factor by which the longest time of a client counts less with each task that comes in


class Rounds:
    """FedAvg's schedule (McMahan et al. 2017, Algorithm 1), and that of synchronous reinforcement learning.

    clients: number of clients. cohort: clients drawn for a round, without replacement (0: all, in order). select: function
    that draws them (plans/selection.py; None: `uniform`). quorum: clients that suffice after the deadline (0: the cohort).
    deadline: seconds from the start of a round to its cut (0: no cut). summed: one task may hold several clients, whose
    weighted sum comes back. evaluate_every: versions from one evaluation to the next (0: none). evaluate_cohort: clients that
    score the weights then. asked: tasks of earlier lives. spare: clients that a round asks beyond its cohort; it ends when the
    cohort is in, and a client that comes later is too late (Bonawitz et al. 2019, over-selection). A round that a restart
    interrupted may take more than its cohort: also what was promised. attendance: the clients that can be asked (None: all,
    always); a round begins when there are as many as its cohort.
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
        spare: int = 0,
        attendance: Attendance | None = None,
    ) -> None:
        self.clients, self.cohort = clients, cohort or clients
        self.spare, self.attendance = spare, attendance
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
        self.issued = self.early = 0  # early: evaluations that are given before the training of their round
        self.beside = False  # evaluators were here when the round began
        self.apiece = math.inf  # seconds of a client in a task of several: the longest lately

    def assign(self, seats: Seats, news: Sequence[Outcome], version: int, now: float) -> Sequence[Task]:
        self.news.extend(news)
        if self.summed:
            self._time(news)
        if version != self.version and not self._begin(version, now, seats.evaluations is not None):
            return []
        tasks: list[Task] = []
        shares = self._shares(seats)
        beside = [task for _ in range(self.early - self.issued) if (task := self._next(1))] if self.beside else []
        while len(tasks) < seats.room and (task := self._next(max(1, shares - len(tasks)))):
            tasks.append(task)
        return beside + tasks

    def admits(self, made_from: int, version: int) -> bool:
        return made_from == version

    def enough(self, folded: int, outstanding: int, version: int, now: float) -> bool:
        if version != self.version or folded == 0:
            return False
        all_out = self.issued == len(self.train) + len(self.evaluate)
        cut = 0 < self.deadline <= now - self.began and folded >= self.quorum
        full = self.spare > 0 and folded >= self.cohort
        return (all_out and outstanding == 0) or cut or full

    def wakes(self, version: int, now: float) -> float:
        if version != self.version:
            return math.inf if self.attendance is None else self.attendance.change(now)
        cut = self.began + self.deadline
        return cut if self.deadline and now < cut else math.inf

    def _begin(self, version: int, now: float, beside: bool) -> bool:
        """Return whether the round has begun: enough clients can be asked. beside: evaluators are here, which evaluate while
        others train."""
        among = () if self.attendance is None else (self.attendance.among(now),)
        here = len(among[0]) if among else self.clients
        if here < min(self.cohort, self.clients):
            return False
        self.version, self.began, self.issued = version, now, 0
        done, many = self.asked.done.get(version, ()), min(here, self.cohort + self.spare)
        self.train = [client for client in self.select(version, many, tuple(self.news), *among) if client not in done]
        self.news.clear()
        due = self.evaluate_every and version % self.evaluate_every == 0
        self.evaluate = self.evaluators(version, min(here, self.evaluate_cohort), (), *among) if due else ()
        self.beside, self.early = beside, len(self.evaluate) if self.spare or beside else 0
        return True

    def _time(self, news: Sequence[Outcome]) -> None:
        """Note the seconds that a client takes."""
        for one in news:
            if one.word == "accepted" and one.task.counts and one.task.clients:
                took = one.seconds / len(one.task.clients)
                self.apiece = took if self.apiece == math.inf else max(took, FADES * self.apiece)

    def _shares(self, seats: Seats) -> int:
        """Return the number of tasks that the clients of a summed cohort which are left are cut into. It is the number of
        actors with room if each actor's share lasts for SOON at most: a task costs a message and a thread's waking, and a
        worker may train the clients of one task together. Else it is the number of tasks that there is room for: an actor
        begins the second while the sum of the first is on its way, and less is lost with an actor."""
        left = len(self.train) - max(0, self.issued - self.early)
        if not self.summed or left <= 0 or self.apiece * left > SOON * seats.room:
            return seats.room
        actors = sum(1 for _ in seats)
        return actors if actors and self.apiece * math.ceil(left / actors) <= SOON else seats.room

    def _next(self, shares: int) -> Task | None:
        """Return the next task of the round, None if there is none. shares: number of tasks that the clients which are left are
        cut into, if the cohort is summed. Further tasks go out when actors have room again."""
        if self.issued < self.early:  # a round that ends when it has enough evaluates first, and evaluators need not wait
            return self._task(self.evaluate[self.issued : self.issued + 1], "evaluate", False)
        at = self.issued - self.early
        left = len(self.train) - at
        if left > 0:
            size = min(MOST_CLIENTS, math.ceil(left / shares)) if self.summed else 1
            return self._task(self.train[at : at + size], "train", True)
        at -= len(self.train) - self.early
        return self._task(self.evaluate[at : at + 1], "evaluate", False) if at < len(self.evaluate) else None

    def _task(self, clients: Sequence[int], kind: str, counts: bool) -> Task:
        task = Task(self.version, self.asked.first.get(self.version, 0) + self._place(counts), tuple(clients), kind, counts)
        self.issued += len(clients)
        return task

    def _place(self, counts: bool) -> int:
        """Return the next task's place in its round. Evaluators change no place: evaluations draw by it."""
        if self.spare:
            return self.issued
        return self.issued - self.early * counts + len(self.train) * (self.issued < self.early)
