"""Rounds whose cohort is drawn as differential privacy's accountants assume, from a secret.

The one idea: sampling amplifies privacy only if nobody knows who was drawn. So the draws follow from a secret of the run and
not from its seed, which everybody may know.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from shoal.coordinator.deciding.plans import Outcome
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.coordinator.deciding.plans.selection import Select

Keyed = Callable[[int], bytes]
"""Version -> bytes that key the draws of this version."""


def poisson(clients: int, rate: float, keyed: Keyed) -> Select:
    """Return a selection that draws each client by itself with probability `rate`: any number of clients, perhaps none."""

    def select(version: int, how_many: int, news: Sequence[Outcome]) -> Sequence[int]:
        if rate >= 1:
            return range(clients)
        rng = random.Random(keyed(version))
        chosen: list[int] = []
        at, per = -1, math.log1p(-rate)
        while True:
            at += 1 + int(math.log(1.0 - rng.random()) / per)  # clients left out until the next one: geometric
            if at >= clients:
                return chosen
            chosen.append(at)

    return select


def fixed_size(clients: int, keyed: Keyed) -> Select:
    """Return a selection of as many clients as are wanted, without replacement, each set with equal chances."""

    def select(version: int, how_many: int, news: Sequence[Outcome]) -> Sequence[int]:
        return sorted(random.Random(keyed(version)).sample(range(clients), how_many))

    return select


class Sampled(Rounds):
    """Rounds of the clients that `select` draws. A round for which it draws none is stepped without a contribution."""

    def __init__(self, *arguments: object, select: Select, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self.select, self.drawn = select, -1

    def enough(self, folded: int, outstanding: int, version: int, now: float) -> bool:
        nobody = version == self.version and self.issued == len(self.train) + len(self.evaluate) and not outstanding
        if nobody and not folded and self.drawn != version:
            self.drawn = version
            return not self.select(version, self.cohort, ())
        return super().enough(folded, outstanding, version, now)
