"""Rounds of which the next begins while the learner learns from the last: a lag of one version.

The one idea: actors and learner each wait for the other in synchronous rounds. If the next round is acted by the weights that
are there when the last round is complete, neither waits, and no row is more than one version old unless an actor was lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from shoal.coordinator.deciding.plans import AFRESH, Asked, Outcome, Seats
from shoal.protocol.work import Task

LOST = ("stale", "aside")  # words of an outcome after which a client's task of a round is given out again


class Overlapped:
    """Every client works once in a round. A round's tasks go out as soon as all contributions to the round before are in, which
    is when the learner begins its step. evaluate_every: versions from one evaluation, by one actor, to the next (0: none)."""

    def __init__(self, clients: int, *, evaluate_every: int = 0, asked: Asked = AFRESH) -> None:
        self.clients, self.evaluate_every = clients, evaluate_every
        self.drawn, self.evaluated = asked.drawn, 0
        self.given: list[int] = []  # client -> the first round of which it has no task
        self.done: list[int] = []  # client -> the first round to which it has not contributed

    def assign(self, seats: Seats, news: Sequence[Outcome], version: int, now: float) -> Sequence[Task]:
        if not self.given:  # a run that goes on knows its version only now
            self.given, self.done = [version] * self.clients, [version] * self.clients
        for one in news:
            self._hear(one)
        tasks: list[Task] = []
        due = self.evaluate_every > 0 and version >= self.evaluated + self.evaluate_every
        if due and seats.room and seats.evaluations != 0:
            self.evaluated = version
            tasks.append(self._task(version, 0, "evaluate"))
        complete, room = min(self.done), seats.room + len(tasks) * bool(seats.evaluations)
        for client in range(self.clients):
            if len(tasks) < room and self.given[client] <= min(complete, version + 1):
                tasks.append(self._task(max(0, self.given[client] - 1), client, "train"))
                self.given[client] += 1
        return tasks

    def admits(self, made_from: int, version: int) -> bool:
        return version - made_from <= 1

    def enough(self, folded: int, outstanding: int, version: int, now: float) -> bool:
        return folded >= self.clients

    def wakes(self, version: int, now: float) -> float:
        return math.inf

    def _hear(self, one: Outcome) -> None:
        for client in one.task.clients if one.task.counts else ():
            if one.word == "accepted":
                self.done[client] = min(self.done[client] + 1, self.given[client])
            elif one.word in LOST:
                self.given[client] = max(self.given[client] - 1, self.done[client])

    def _task(self, version: int, client: int, kind: str) -> Task:
        number = self.drawn
        self.drawn += 1
        return Task(version, number, (client,), kind, counts=kind == "train")
