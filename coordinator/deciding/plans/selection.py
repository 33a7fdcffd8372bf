"""Selection: which clients a round asks.

The one idea: a selection is a function of the version, of how many clients are wanted, and of what became of earlier tasks. It
draws from (seed, version) alone.
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
"""(version, how_many, news) -> that many clients, each once. news: what became of tasks since the last call, oldest first."""


def checked(select: Select, clients: int) -> Select:
    """The same selection, which raises UserError where it gives no client, one twice, or one that there is not."""

    def selected(version: int, how_many: int, news: Sequence[Outcome]) -> Sequence[int]:
        chosen = select(version, how_many, news)
        if len(chosen) and len(set(chosen)) == len(chosen) and min(chosen) >= 0 and max(chosen) < clients:
            return chosen
        asked = f"asked were {how_many} different clients from 0 to {clients - 1}"
        raise UserError(f"a selection gave {list(chosen)[:10]} for the round of version {version}; {asked}")

    return selected


def uniform(clients: int, seed: int, purpose: str = "cohort") -> Select:
    """Every client with the same chance, without replacement; in order where all are wanted. purpose: draws of another purpose
    are independent."""

    def select(version: int, how_many: int, news: Sequence[Outcome]) -> Sequence[int]:
        if how_many == clients:
            return range(clients)
        return draw(seed, purpose, version).sample(range(clients), how_many)

    return select


def power_of_choice(clients: int, seed: int, candidates: int, *, shares: Sequence[float] = (), metric: str = "loss") -> Select:
    """The clients with the largest loss among some that are drawn (Cho et al. 2020, in the variant rpow-d).

    candidates: how many are drawn (the paper's d), without replacement, with the chances `shares`: each client's part of the
    data, all above 0 (none given: the same for all). A client's loss is the mean of `metric` in the totals of its latest
    accepted contribution, and infinite before its first. Ties are broken at random. A sum over several clients gives each of
    them the sum's mean. Memory: a number for every client that ever contributed. A restart forgets all losses.
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
