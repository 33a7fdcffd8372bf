"""Selection: the functions that draw a round's clients.

The one idea: a selection is a function of the version, of the number of clients wanted, and of the outcomes of earlier tasks.
Its random numbers come from (seed, version) alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from heapq import nlargest, nsmallest
from typing import TypeAlias

from shoal.coordinator.deciding.plans import Outcome
from shoal.protocol.draws import draw
from shoal.protocol.errors import UserError

Select: TypeAlias = Callable[[int, int, Sequence[Outcome]], Sequence[int]]
"""(version, how_many, news) -> `how_many` clients, each once. news: outcomes of tasks since the last call, oldest first."""


def checked(select: Select, clients: int) -> Select:
    """Return `select` with a check: UserError if it gives no client, more than are asked for, a client twice, or one outside
    0 to `clients` - 1."""

    def selected(version: int, how_many: int, news: Sequence[Outcome]) -> Sequence[int]:
        chosen = select(version, how_many, news)
        asked = f"asked were {how_many} different clients from 0 to {clients - 1}"
        try:
            many, whole = len(chosen), all(int(client) == client for client in chosen)
        except (TypeError, ValueError):
            many, whole = 0, False
        if whole and 0 < many == len(set(chosen)) <= how_many and min(chosen) >= 0 and max(chosen) < clients:
            return chosen
        gave = list(chosen)[:10] if many else repr(chosen)[:100]
        raise UserError(f"a selection gave {gave} for the round of version {version}; {asked}")

    return selected


def uniform(clients: int, seed: int, purpose: str = "cohort") -> Select:
    """Return a selection of clients with equal chances, without replacement; in order if all are wanted. purpose: draws of
    different purposes are independent."""

    def select(version: int, how_many: int, news: Sequence[Outcome]) -> Sequence[int]:
        if how_many == clients:
            return range(clients)
        return draw(seed, purpose, version).sample(range(clients), how_many)

    return select


def power_of_choice(clients: int, seed: int, candidates: int, *, shares: Sequence[float] = (), metric: str = "loss") -> Select:
    """Return a selection of the clients with the largest loss among drawn candidates (Cho et al. 2020, variant rpow-d).

    candidates: clients drawn first (the paper's d; at least as many as are wanted), without replacement. shares: the chances,
    each client's part of the data, all above 0 (none given: equal chances). A client's loss is the mean of `metric` in the
    totals of its latest accepted contribution, and infinite before its first. Ties are broken at random. A sum over several
    clients gives each of them the sum's mean. Memory: one number for every client that ever contributed. A restart forgets all
    losses.
    """
    if not 0 < candidates <= clients or (shares and (len(shares) != clients or not min(shares) > 0)):
        raise UserError(f"candidates={candidates}: from 1 to clients={clients}; shares: none, or one above 0 for each client")
    losses: dict[int, float] = {}

    def select(version: int, how_many: int, news: Sequence[Outcome]) -> Sequence[int]:
        for outcome in news:
            total, count = outcome.totals.get(metric, (0.0, 0.0))
            if outcome.word == "accepted" and count > 0 and math.isfinite(total):
                losses.update(dict.fromkeys(outcome.task.clients, total / count))
        rng = draw(seed, "candidates", version)
        drawn = max(candidates, how_many)
        if shares:  # the first to come of exponential waiting times: successive draws by share, without replacement
            among = nsmallest(drawn, range(clients), key=[rng.expovariate(share) for share in shares].__getitem__)
        else:
            among = rng.sample(range(clients), min(drawn, clients))
        ties = {client: rng.random() for client in among}
        return nlargest(how_many, among, key=lambda client: (losses.get(client, math.inf), ties[client]))

    return select
