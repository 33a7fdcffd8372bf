"""An aggregator that scales long deltas down to a bound, which follows a quantile of the clients' norms.

The one idea: the bound rises if more clients than wanted are above it and falls otherwise, by a factor that one number sets,
so no norm has to be known beforehand (Andrew et al. 2021, "Differentially Private Learning with Adaptive Clipping").
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from shoal.aggregators import Aggregator, State
from shoal.aggregators.around import Around
from shoal.protocol.errors import ProtocolError, within
from shoal.protocol.exact import AS_THEY_ARE, squares
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Moved

LIMIT = "norm_limit"


class Clipped(Around):
    """An aggregator around another, which gets each delta times min(1, C / |delta|).

    C <- C exp(-rate (b - quantile)) after each step, b: share of the step's deltas with |delta| <= C (Andrew et al. 2021,
    section 2.1, without their noise). start: C in the first step. Norms are over the float32 and float64 entries, which alone
    are scaled. C changes between steps only, so the order of arrival changes no bit; it is part of the state.

    Metrics: `norm_limit`, C of the step; `above_limit`, the share of deltas that were scaled down.
    """

    linear = False  # a sum does not show what one client sent

    def __init__(self, aggregator: Aggregator, quantile: float, *, start: float = 0.1, rate: float = 0.2) -> None:
        super().__init__(aggregator)
        within("quantile", quantile, first=0.0)
        within("start", start, above=0.0)
        within("rate", rate, above=0.0)
        self.quantile, self.rate, self.limit = quantile, rate, start
        self._below = self._all = 0

    def fold(self, contribution: Contribution) -> None:
        """Raises ProtocolError, with nothing folded in, for a sum; and as the other aggregator does."""
        if contribution.summed:
            raise ProtocolError("deltas are scaled down one by one; this contribution is a sum")
        bundle, norm = contribution.bundle, contribution.norm
        if norm is None:
            norm = math.sqrt(squares(bundle))
        if norm > self.limit and math.isfinite(norm):
            bundle, factor = bundle.copy(), self.limit / norm
            for dtype in AS_THEY_ARE:
                bundle.vector(dtype)[:] *= factor
            work = replace(contribution.work, bundle=bundle)
            self.aggregator.fold(replace(contribution, work=work, norm=math.sqrt(squares(bundle))))
        else:
            self.aggregator.fold(replace(contribution, norm=norm))
        self._all += 1
        self._below += norm <= self.limit

    def step(self) -> Moved:
        moved, limit = self.aggregator.step(), self.limit
        share = self._below / self._all if self._all else self.quantile
        self.limit *= math.exp(-self.rate * (share - self.quantile))
        self._below = self._all = 0
        return replace(moved, metrics={**moved.metrics, "norm_limit": limit, "above_limit": 1.0 - share})

    def state(self) -> State:
        """The arrays that the inner aggregator keeps, and C, "norm_limit", float64 []."""
        return {**self.aggregator.state(), LIMIT: np.array(self.limit, np.float64)}

    def load(self, weights: Bundle, state: State) -> None:
        self.aggregator.load(weights, state)
        self.limit = float(state[LIMIT])
        self._below = self._all = 0
