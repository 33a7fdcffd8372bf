"""A stream with a bound on lag: every actor always has work, and a step follows every `batch` contributions.

The one idea: FedBuff (Nguyen et al. 2022), FedAsync and IMPALA (Espeholt et al. 2018) are this same schedule.
"""

from __future__ import annotations

from collections.abc import Sequence

from shoal.coordinator.deciding.plans import AFRESH, Asked, Outcome, Seats
from shoal.protocol.draws import draw
from shoal.protocol.work import Task


class Stream:
    """The schedule of a stream.

    batch: contributions for a step (FedBuff's K). max_lag: versions of lag above which a contribution is stale. clients: number
    of clients, one drawn for each task (0: each actor works for itself, in its own environments). evaluate_every: versions
    from one evaluation, by one actor, to the next (0: none). asked: tasks of earlier lives, after which tasks are numbered on.
    """

    def __init__(
        self, batch: int, max_lag: int, *, clients: int = 0, seed: int = 0, evaluate_every: int = 0, asked: Asked = AFRESH
    ) -> None:
        self.batch, self.max_lag = batch, max_lag
        self.clients, self.seed, self.evaluate_every = clients, seed, evaluate_every
        self.drawn = asked.drawn
        self.evaluated = 0

    def assign(self, seats: Seats, news: Sequence[Outcome], version: int, now: float) -> Sequence[Task]:
        return [self._next(version) for _ in range(seats.room)]

    def admits(self, made_from: int, version: int) -> bool:
        return version - made_from <= self.max_lag

    def enough(self, folded: int, outstanding: int, version: int, now: float) -> bool:
        return folded >= self.batch

    def _next(self, version: int) -> Task:
        number = self.drawn
        self.drawn += 1
        oldest = max(0, version - self.max_lag)  # an actor need not wait for weights that are on their way
        if self.evaluate_every and version >= self.evaluated + self.evaluate_every:
            self.evaluated = version
            return Task(oldest, number, (0,), "evaluate", counts=False)
        if self.clients:
            client = draw(self.seed, "client", number).randrange(self.clients)
            return Task(oldest, number, (client,), words={"visit": number})
        return Task(oldest, number, ())
