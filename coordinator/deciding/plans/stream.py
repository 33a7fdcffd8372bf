"""A stream with a bound on lag: every actor always has work, and a step follows every `batch` contributions.

The one idea: FedBuff (Nguyen et al. 2022), FedAsync and IMPALA (Espeholt et al. 2018) are this same schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from shoal.coordinator.deciding.plans import AFRESH, Asked, Outcome, Seats
from shoal.coordinator.deciding.plans.attendance import Attendance
from shoal.protocol.draws import draw
from shoal.protocol.work import Task

OVER = ("accepted", "stale", "aside")  # words of an outcome after which a client has its task no longer
DRAWS = 8  # draws from all clients before a list is made of those that are free


class Stream:
    """The schedule of a stream.

    batch: contributions for a step (FedBuff's K). max_lag: versions of lag above which a contribution is stale. clients: number
    of clients, one drawn for each task (0: each actor works for itself, in its own environments). evaluate_every: versions
    from one evaluation, by one actor, to the next (0: none). asked: tasks of earlier lives, after which tasks are numbered on.
    attendance: the clients that can be asked. With an attendance a client has one task at a time: of the clients that can be
    asked and have none, one is drawn, and if there is none, nobody is asked. None: any client is drawn at any time.
    """

    def __init__(
        self,
        batch: int,
        max_lag: int,
        *,
        clients: int = 0,
        seed: int = 0,
        evaluate_every: int = 0,
        asked: Asked = AFRESH,
        attendance: Attendance | None = None,
    ) -> None:
        self.batch, self.max_lag = batch, max_lag
        self.clients, self.seed, self.evaluate_every = clients, seed, evaluate_every
        self.drawn = asked.drawn
        self.evaluated = 0
        self.attendance = attendance
        self.busy: set[int] = set()  # clients that have a task, where there is an attendance

    def assign(self, seats: Seats, news: Sequence[Outcome], version: int, now: float) -> Sequence[Task]:
        if self.attendance is not None:
            return self._attended(seats.room, news, version, now)
        due = self.evaluate_every > 0 and version >= self.evaluated + self.evaluate_every
        tasks = [self._evaluation(version)] if due and seats.room and seats.evaluations != 0 else []
        room = seats.room if seats.evaluations else seats.room - len(tasks)
        return tasks + [self._next(version) for _ in range(room)]

    def admits(self, made_from: int, version: int) -> bool:
        return version - made_from <= self.max_lag

    def enough(self, folded: int, outstanding: int, version: int, now: float) -> bool:
        return folded >= self.batch

    def wakes(self, version: int, now: float) -> float:
        return math.inf if self.attendance is None else self.attendance.change(now)

    def _attended(self, room: int, news: Sequence[Outcome], version: int, now: float) -> Sequence[Task]:
        assert self.attendance is not None
        self.busy.difference_update(*(one.task.clients for one in news if one.word in OVER))
        tasks: list[Task] = []
        oldest = max(0, version - self.max_lag)
        while len(tasks) < room and (client := self._free(self.attendance, now)) >= 0:
            self.busy.add(client)
            tasks.append(Task(oldest, self.drawn, (client,), words={"visit": self.drawn}))
            self.drawn += 1
        return tasks

    def _free(self, attendance: Attendance, now: float) -> int:
        """Return the next client: the first that is free of a few draws from all, else a draw from those that are free; -1 if
        none is. A few draws find one without a look at every client, unless most are busy or away."""
        rng = draw(self.seed, "client", self.drawn)
        for _ in range(DRAWS):
            client = rng.randrange(self.clients)
            if client not in self.busy and attendance.can(client, now):
                return client
        free = [client for client in attendance.among(now) if client not in self.busy]
        return rng.choice(free) if free else -1

    def _evaluation(self, version: int) -> Task:
        self.evaluated = version
        self.drawn += 1
        return Task(max(0, version - self.max_lag), self.drawn - 1, (0,), "evaluate", counts=False)

    def _next(self, version: int) -> Task:
        number = self.drawn
        self.drawn += 1
        oldest = max(0, version - self.max_lag)  # an actor need not wait for weights that are on their way
        if self.clients:
            client = draw(self.seed, "client", number).randrange(self.clients)
            return Task(oldest, number, (client,), words={"visit": number})
        return Task(oldest, number, ())
