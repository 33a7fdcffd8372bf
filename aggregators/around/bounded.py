"""An aggregator that refuses a contribution whose norm is far above the usual norm.

The one idea: the bound of a version is fixed by what earlier versions accepted. So within a version the order of arrival
decides nothing, the same contributions are accepted in every life of a run, and a refused contribution moves no bound.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from shoal.aggregators import Aggregator, State
from shoal.aggregators.around import Around
from shoal.protocol.errors import ProtocolError
from shoal.protocol.exact import squares
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Moved

WINDOW = 101
LEAST = 10
NORMS, COUNTS = "recent_norms", "recent_counts"


class Bounded(Around):
    """An aggregator around another, which gets no contribution whose L2 norm is above `factor` times the median of recent
    norms.

    A norm is of the float32 and float64 entries. Recent norms are those accepted in the latest versions, as many whole
    versions as make up WINDOW norms. There is no bound if fewer than LEAST norms are recent, or if their median is 0. The
    recent norms are part of the state, so a restart goes on with the same bound. median: nan if fewer than LEAST are recent.
    """

    linear = False  # a sum does not show what one client sent

    def __init__(self, aggregator: Aggregator, factor: float) -> None:
        super().__init__(aggregator)
        self.factor = factor
        self.median = math.nan
        self._recent: list[list[float]] = []  # norms by version
        self._now: list[float] = []

    @property
    def bound(self) -> float:
        return self.factor * self.median if self.median > 0 else math.inf

    def fold(self, contribution: Contribution) -> None:
        """Raises ProtocolError, with nothing folded in, for a norm above the bound; and as the other aggregator does."""
        bundle, norm = contribution.bundle, contribution.norm
        if contribution.summed:
            raise ProtocolError("contributions of bounded norm come one by one; this one is a sum")
        if norm is None:
            norm = math.sqrt(squares(bundle))
        if norm > self.bound:  # NaN is not: the other aggregator names the array that holds it
            usual = f"{self.factor:g} times the median of recent norms, {self.median:g}"
            raise ProtocolError(f"norm {norm:g} is above the bound of {self.bound:g}: {usual}")
        self.aggregator.fold(replace(contribution, norm=norm))
        self._now.append(norm)

    def step(self) -> Moved:
        moved = self.aggregator.step()
        self._recall([*self._recent, self._now])
        return moved

    def state(self) -> State:
        norms = np.array([norm for version in self._recent for norm in version], np.float64)
        return {**self.aggregator.state(), NORMS: norms, COUNTS: np.array([len(version) for version in self._recent], np.int64)}

    def load(self, weights: Bundle, state: State) -> None:
        self.aggregator.load(weights, state)
        ends = np.cumsum(state[COUNTS])
        self._recall([part.tolist() for part in np.split(state[NORMS], ends[:-1])] if len(ends) else [])

    def _recall(self, versions: list[list[float]]) -> None:
        """Set the norms of earlier versions, the latest version last, and their median."""
        while sum(map(len, versions[1:])) >= WINDOW:
            versions = versions[1:]
        norms = [norm for version in versions for norm in version]
        self._recent, self._now = versions, []
        self.median = float(np.median(norms)) if len(norms) >= LEAST else math.nan
