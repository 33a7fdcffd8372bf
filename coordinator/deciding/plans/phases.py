"""Rounds of several phases, as of secure aggregation: a client has a task in each phase, at one actor, which keeps its secrets.

The one idea: a phase begins when every task of the phase before has its outcome. A client whose task was not accepted has
dropped out, and gets no task of a later phase. The same goes for a client whose owner is not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shoal.coordinator.deciding.plans import AFRESH, Asked, Outcome, Seat, Seats, selection
from shoal.protocol.work import Task

FINAL = ("accepted", "stale", "aside")


class Phases:
    """The schedule of such rounds. A version is a round; a round begins anew in a later life.

    clients, cohort: as of Rounds, whose cohorts it draws. phases: their names, in order; a task's word "phase" is one of them.
    least: fewest clients with which a next phase begins; with fewer the round ends, and is stepped as it is. owners: client ->
    public key of the actors that may play it, for all clients; empty: any actor may play any client. With owners a round begins
    when actors of `least` of its clients have room, and goes without the clients whose actors have none by then.
    """

    evaluate_every = 0  # no client evaluates

    def __init__(
        self,
        clients: int,
        cohort: int,
        phases: Sequence[str],
        least: int,
        *,
        seed: int = 0,
        asked: Asked = AFRESH,
        owners: Mapping[int, str] | None = None,
    ) -> None:
        self.clients, self.cohort, self.phases, self.least = clients, cohort, tuple(phases), least
        self.owners = owners or {}
        self.select = selection.uniform(clients, seed)
        self.first = asked.first
        self.version = -1
        self.phase = self.issued = self.before = 0
        self.todo: list[int] = []
        self.out: set[int] = set()
        self.came: list[int] = []
        self.home: dict[int, int] = {}

    def assign(self, seats: Seats, news: Sequence[Outcome], version: int, now: float) -> Sequence[Task]:
        if version != self.version:
            self._begin(version)
        for outcome in news:
            if outcome.task.version == version and outcome.word in FINAL and outcome.task.clients[0] in self.out:
                self.out.discard(outcome.task.clients[0])
                if outcome.word == "accepted":
                    self.came.append(outcome.task.clients[0])
        if not self._gathered(seats):
            return []
        if not self.todo and not self.out and self._goes_on(len(self.came)):
            self.phase, self.before = self.phase + 1, self.before + len(self.came)
            self.todo, self.came = sorted(self.came), []
            self._gathered(seats)
        return self._given(seats) if self.todo else []

    def admits(self, made_from: int, version: int) -> bool:
        return made_from == version

    def enough(self, folded: int, outstanding: int, version: int, now: float) -> bool:
        begun = version == self.version and self.issued > 0
        return begun and not self.todo and outstanding == 0 and not self._goes_on(folded - self.before)

    def _begin(self, version: int) -> None:
        self.version, self.phase, self.issued, self.before = version, 0, 0, 0
        self.todo = sorted(self.select(version, self.cohort, ()))
        self.out, self.came, self.home = set(), [], {}

    def _goes_on(self, came: int) -> bool:
        return self.phase + 1 < len(self.phases) and came >= self.least

    def _plays(self, seat: Seat, client: int) -> bool:
        """Return whether the actor can play the client: it has the client's session, or may begin one."""
        return self.home.get(client, seat.actor) == seat.actor and self.owners.get(client, seat.user) == seat.user

    def _gathered(self, seats: Seats) -> bool:
        """Return False if the round has not begun, and actors of too few of its clients are here. Else leave out the clients
        whose owner has no actor with room while no task is out."""
        if self.owners and self.todo and not self.out:
            here = [client for client in self.todo if any(self._plays(seat, client) for seat in seats)]
            if not self.issued and len(here) < self.least:
                return False
            self.todo = here
        return True

    def _given(self, seats: Seats) -> list[Task]:
        """Tasks for the actors that have room. If no task is out and no client's actor has room, that actor is gone: the task
        goes to any other, which does not know the client and fails. With owners, such clients were left out before."""
        tasks: list[Task] = []
        for seat in list(seats):
            mine = [client for client in self.todo if self._plays(seat, client)]
            tasks += [self._task(client, seat.actor) for client in mine[: min(seat.free, seats.room - len(tasks))]]
        if not tasks and not self.out:
            tasks = [self._task(client, -1) for client in self.todo[: seats.room]]
        return tasks

    def _task(self, client: int, actor: int) -> Task:
        self.todo.remove(client)
        self.out.add(client)
        self.home.setdefault(client, actor)
        number = self.first.get(self.version, 0) + self.issued
        self.issued += 1
        return Task(self.version, number, (client,), words={"phase": self.phases[self.phase]}, where=actor)
