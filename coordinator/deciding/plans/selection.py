"""Selection: the functions that draw a round's clients.

The one idea: a selection is a function of the version, of the number of clients wanted, and of the outcomes of earlier tasks.
Its random numbers come from (seed, version) alone. Where clients come and go it is also told among whom it may choose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from heapq import nlargest, nsmallest
from typing import TypeAlias

from shoal.coordinator.deciding.plans import Outcome
from shoal.protocol.draws import draw
from shoal.protocol.errors import UserError

Select: TypeAlias = Callable[..., Sequence[int]]
"""(version, how_many, news) -> `how_many` clients, each once. news: outcomes of tasks since the last call, oldest first. A
function of this module takes a fourth argument, `among`: the clients that may be chosen, in rising order; None: all."""


def checked(select: Select, clients: int) -> Select:
    """Return `select` with a check: UserError if it gives no client, more than are asked for, a client twice, or one outside
    0 to `clients` - 1, or outside `among`."""

    def selected(version: int, how_many: int, news: Sequence[Outcome], among: Sequence[int] | None = None) -> Sequence[int]:
        chosen = select(version, how_many, news) if among is None else select(version, how_many, news, among)
        asked = f"asked were {how_many} different clients from 0 to {clients - 1}"
        try:
            many, whole = len(chosen), all(int(client) == client for client in chosen)
        except (TypeError, ValueError):
            many, whole = 0, False
        if whole and 0 < many == len(set(chosen)) <= how_many and min(chosen) >= 0 and max(chosen) < clients:
            if among is None or not (gone := set(chosen).difference(among)):
                return chosen
            asked = f"client {min(gone)} is not among the {len(among)} clients that can be asked now"
        gave = list(chosen)[:10] if many else repr(chosen)[:100]
        raise UserError(f"a selection gave {gave} for the round of version {version}; {asked}")

    return selected


def uniform(clients: int, seed: int, purpose: str = "cohort") -> Select:
    """Return a selection of clients with equal chances, without replacement; in order if all are wanted. purpose: draws of
    different purposes are independent."""

    def select(version: int, how_many: int, news: Sequence[Outcome], among: Sequence[int] | None = None) -> Sequence[int]:
        pool = range(clients) if among is None else among
        if how_many == len(pool):
            return pool
        return draw(seed, purpose, version).sample(pool, how_many)

    return select


def weighted(shares: Sequence[float], seed: int) -> Select:
    """Return a selection by shares, without replacement: each further client is drawn from those that are left, with chances in
    proportion to its share (successive sampling). shares: each client's number of examples, say, all above 0."""
    if not shares or not min(shares) > 0:
        raise UserError("select=weighted: every client must have a share above 0; leave out the clients without examples")

    def select(version: int, how_many: int, news: Sequence[Outcome], among: Sequence[int] | None = None) -> Sequence[int]:
        rng = draw(seed, "weighted", version)
        waits = [rng.expovariate(share) for share in shares]  # the first to come of exponential waiting times
        return nsmallest(how_many, range(len(shares)) if among is None else among, key=waits.__getitem__)

    return select


def minimize_reuse(clients: int, seed: int) -> Select:
    """Return a selection in turns: the clients in an order drawn once, round after round, so that as many rounds as possible
    lie between two turns of a client (pfl-research's MinimizeReuseUserSampler).

    Where all clients can be asked, the clients of a round depend on (seed, version) alone. Where some cannot, those that have
    waited for most rounds come first, in the same order; a restart forgets how long a client has waited.
    """
    order = draw(seed, "order").sample(range(clients), clients)
    place = {client: at for at, client in enumerate(order)}
    last: dict[int, int] = {}

    def select(version: int, how_many: int, news: Sequence[Outcome], among: Sequence[int] | None = None) -> Sequence[int]:
        if among is None:
            return [order[(version * how_many + at) % clients] for at in range(how_many)]
        chosen = nsmallest(how_many, among, key=lambda client: (last.get(client, -1), place[client]))
        last.update(dict.fromkeys(chosen, version))
        return chosen

    return select


def power_of_choice(clients: int, seed: int, candidates: int, *, shares: Sequence[float] = (), metric: str = "loss") -> Select:
    """Return a selection of the clients with the largest loss among drawn candidates (Cho et al. 2020, variant rpow-d).

    candidates: clients drawn first (the paper's d; at least as many as are wanted), without replacement. shares: the chances,
    each client's part of the data, all above 0 (none given: equal chances). A client's loss is the mean of `metric` in the
    totals of its latest accepted contribution, and infinite before its first. Ties are broken at random. A sum over several
    clients gives each of them the sum's mean. Memory: one number for every client that ever contributed. A restart forgets all
    losses.
    """
    if not 0 < candidates <= clients:
        raise UserError(f"candidates={candidates}: allowed is from 1 to clients={clients}")
    if shares and (len(shares) != clients or not min(shares) > 0):
        raise UserError(f"shares: expected one number above 0 for each of {clients} clients, or none")
    losses: dict[int, float] = {}

    def select(version: int, how_many: int, news: Sequence[Outcome], among: Sequence[int] | None = None) -> Sequence[int]:
        for outcome in news:
            total, count = outcome.totals.get(metric, (0.0, 0.0))
            if outcome.word == "accepted" and count > 0 and math.isfinite(total):
                losses.update(dict.fromkeys(outcome.task.clients, total / count))
        rng = draw(seed, "candidates", version)
        pool = range(clients) if among is None else among
        drawn = max(candidates, how_many)
        if shares:  # the first to come of exponential waiting times: successive draws by share, without replacement
            chances = nsmallest(drawn, pool, key=[rng.expovariate(share) for share in shares].__getitem__)
        else:
            chances = rng.sample(pool, min(drawn, len(pool)))
        ties = {client: rng.random() for client in chances}
        return nlargest(how_many, chances, key=lambda client: (losses.get(client, math.inf), ties[client]))

    return select


class Oort:
    """Guided selection (Lai, Zhu, Madhyastha and Chowdhury, OSDI 2021: "Oort", algorithm 1 and equations 1 and 2).

    The utility of client i, of its latest accepted contribution, with |B| samples trained on and their losses l, is

        U(i) = |B| sqrt(sum(l^2) / |B|)                                  statistical utility, equation 1, over all samples
        Util(i) = (min(U(i), the 95th percentile of U) + sqrt(0.1 ln(R) / L(i))) * (T / t(i))^penalty, if t(i) > T

    R is the number of the round, L(i) the round in which the client contributed last (so that a client is tried again whose
    utility is old), t(i) the seconds from its task to its contribution, T the preferred duration of a round. A share epsilon
    of a round explores: clients that have never contributed, with equal chances. The rest exploit: clients are drawn in
    proportion to Util from those with at least 0.95 times the Util of the last place. epsilon falls from 0.9 by the factor 0.98
    in each round, down to 0.2. T is a percentile of the t(i), the 30th at first; every 20 rounds it rises by 5 if the exploited
    clients' utility fell against the 20 rounds before (the paper's pacer). A client that was chosen `most` times is left out.

    most: 0: any number of times. A client whose task failed, came too late or was left out counts as explored, with the utility
    0 that it had; its duration is the time that it took. Memory: five numbers for each client that was ever chosen. A restart
    forgets all of them.
    """

    EXPLORES, DECAY, LEAST = 0.9, 0.98, 0.2
    CUTOFF, CLIP, STEP, PERCENTILE, RAISE = 0.95, 0.95, 20, 30.0, 5.0

    def __init__(self, clients: int, seed: int, *, penalty: float = 2.0, most: int = 0) -> None:
        self.clients, self.seed, self.penalty, self.most = clients, seed, penalty, most
        self.utility: dict[int, float] = {}
        self.took: dict[int, float] = {}
        self.last: dict[int, int] = {}
        self.chosen: dict[int, int] = {}
        self.percentile = self.PERCENTILE
        self.round = 0
        self.exploited: list[int] = []
        self.gains: list[float] = []  # the exploited clients' utility, a round each

    def __call__(
        self, version: int, how_many: int, news: Sequence[Outcome], among: Sequence[int] | None = None
    ) -> Sequence[int]:
        self._hear(news, version)
        self._pace()
        rng = draw(self.seed, "oort", version)
        pool = [client for client in (range(self.clients) if among is None else among) if self._may(client)]
        if len(pool) < how_many:  # too many have been chosen `most` times
            pool = list(range(self.clients) if among is None else among)
        known = [client for client in pool if client in self.utility]
        fresh = [client for client in pool if client not in self.utility]
        epsilon = max(self.LEAST, self.EXPLORES * self.DECAY**version)
        explores = min(len(fresh), max(round(epsilon * how_many), how_many - len(known)))
        self.exploited = self._exploit(known, how_many - explores, rng.random)
        chosen = [*self.exploited, *rng.sample(fresh, explores)]
        for client in chosen:
            self.chosen[client] = self.chosen.get(client, 0) + 1
        return chosen

    def _may(self, client: int) -> bool:
        return not self.most or self.chosen.get(client, 0) < self.most

    def _hear(self, news: Sequence[Outcome], version: int) -> None:
        for outcome in news:
            for client in outcome.task.clients if outcome.word in ("accepted", "stale", "aside") else ():
                self.took[client] = outcome.seconds
                self.utility.setdefault(client, 0.0)
                self.last.setdefault(client, outcome.task.version + 1)
                if outcome.word == "accepted" and outcome.task.counts:
                    self.utility[client] = statistical(outcome)
                    self.last[client] = outcome.task.version + 1
        self.round = version + 1

    def _pace(self) -> None:
        """Prefer longer rounds if the utility of what was exploited falls."""
        if self.exploited:
            self.gains.append(math.fsum(self.utility.get(client, 0.0) for client in self.exploited))
        step = self.STEP
        due = len(self.gains) >= 2 * step and len(self.gains) % step == 0
        if due and math.fsum(self.gains[-2 * step : -step]) > math.fsum(self.gains[-step:]):
            self.percentile = min(100.0, self.percentile + self.RAISE)

    def utilities(self, known: Sequence[int]) -> dict[int, float]:
        """Return Util of each of these clients, which have been asked before."""
        clip = percentile([self.utility[client] for client in known], 100 * self.CLIP)
        preferred = percentile([self.took[client] for client in known], self.percentile)
        found: dict[int, float] = {}
        for client in known:
            uncertain = math.sqrt(0.1 * math.log(max(1, self.round)) / max(1, self.last[client]))
            slow = self.took[client] > preferred
            factor = (preferred / self.took[client]) ** self.penalty if slow else 1.0
            found[client] = (min(self.utility[client], clip) + uncertain) * factor
        return found

    def _exploit(self, known: Sequence[int], many: int, random: Callable[[], float]) -> list[int]:
        if many <= 0:
            return []
        utility = self.utilities(known)
        least = self.CUTOFF * nlargest(many, utility.values())[-1]
        high = [client for client in known if utility[client] >= least]
        waits = {client: -math.log(1.0 - random()) / max(utility[client], 1e-12) for client in high}
        return nsmallest(many, high, key=waits.__getitem__)


def statistical(outcome: Outcome) -> float:
    """Return |B| sqrt(mean(loss^2)), from the totals `loss_squared`; from the mean of `loss` if a worker tells no squares."""
    total, count = outcome.totals.get("loss_squared", (0.0, 0.0))
    if count > 0 and math.isfinite(total) and total >= 0:
        return count * math.sqrt(total / count)
    total, count = outcome.totals.get("loss", (0.0, 0.0))
    return abs(total) if count > 0 and math.isfinite(total) else 0.0


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value that `share` per cent of the values do not pass (the nearest rank); 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share / 100 * len(ordered)) - 1))] if ordered else 0.0
