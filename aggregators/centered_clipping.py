"""Centered clipping (Karimireddy, He and Jaggi 2021, "Learning from History for Byzantine Robust Optimization").

The one idea: the last step is a good guess of the next one. Each delta counts by its difference from that guess, and no
difference by more than `radius`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shoal.aggregators import State
from shoal.aggregators.robust import Choice, Cohort, Rule, Weighted
from shoal.protocol.errors import within
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Metrics

CENTER = "center"


def clipped(inner: Tensor, along: Tensor, square: float, radius: float, iterations: int) -> tuple[Tensor, float, Tensor]:
    """The weights of the deltas and of the centre c in v_L, by v_0 = c, v_(l+1) = v_l + 1/n sum_i (x_i - v_l) min(1, radius /
    |x_i - v_l|) (equation CClip), and the last factors min(1, ...), float64 [n].

    inner: inner products of all pairs of deltas, float64 [n, n]. along: of each delta with c, float64 [n]. square: |c|^2.
    """
    n = len(inner)
    rows, center, factors = torch.zeros(n, dtype=torch.float64), 1.0, torch.ones(n, dtype=torch.float64)
    for _ in range(iterations):
        own = rows @ (inner @ rows) + 2 * center * (rows @ along) + center * center * square  # |v|^2
        apart = (inner.diagonal() - 2 * (inner @ rows + center * along) + own).clamp_(min=0).sqrt_()
        factors = (radius / apart).clamp_(max=1.0)
        kept = 1.0 - float(factors.sum()) / n
        rows, center = kept * rows + factors / n, kept * center
    return rows, center, factors


@dataclass(eq=False)
class CenteredClipping(Rule):
    """The step goes along v_L. Its centre in the first round is 0, and later the last round's v_L.

    radius: the largest L2 distance from the centre that a delta counts with (the paper's tau). iterations: the paper's L.
    Arrays that are not trained move by the mean with the last factors as weights. Metric: `clipped`, the share of rows that
    were scaled down. Memory: 4 bytes an entry more. `malicious` serves nearest-neighbour mixing and the check of numbers.
    """

    radius: float = 1.0
    iterations: int = 1
    center: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32), repr=False)
    name: ClassVar[str] = "centered_clipping"

    def __post_init__(self) -> None:
        super().__post_init__()
        within("radius", self.radius, above=0.0)
        within("iterations", self.iterations, first=1)
        self._clipped = 0.0

    def choose(self, cohort: Cohort) -> Choice:
        if not self.center.size:
            self.center = np.zeros(cohort.trainable, np.float32)
        center = torch.from_numpy(self.center).double()
        along, square = cohort.along(center), float(center.dot(center))
        rows, own, factors = clipped(cohort.inner, along, square, self.radius, self.iterations)
        self._clipped = float((factors < 1).double().mean())
        return Weighted(rows, factors / factors.sum(), center.mul_(own))

    def follow(self, delta: Bundle) -> Metrics:
        self.center = delta.vector()[: self.center.size].copy()
        return {"clipped": self._clipped}

    def state(self) -> State:
        """The last v_L, "center", float32 [trainable]; [0] before the first round."""
        return {CENTER: self.center.copy()}

    def load(self, state: State) -> None:
        if CENTER not in state:
            raise ValueError(f"saved state: {CENTER!r} is missing: the state is of another method")
        self.center = state[CENTER].astype(np.float32)
