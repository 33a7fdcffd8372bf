"""RFA: the geometric median of the deltas (Pillutla, Kakade and Harchaoui 2022, "Robust Aggregation for Federated Learning").

The one idea: the point with the smallest sum of distances to all deltas. A far delta pulls no harder than a near one. The
smoothed Weiszfeld algorithm (the paper's algorithm 2) finds it by weighted means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from shoal.aggregators.robust import Choice, Cohort, Rule, Weighted
from shoal.protocol.errors import within


def weiszfeld(inner: Tensor, iterations: int, smoothing: float) -> Tensor:
    """The weights of the deltas in their geometric median: v = sum_i weights[i] * delta_i.

    From v = 0, which are the weights that clients began with, each iteration makes v the mean by 1 / max(smoothing,
    |v - delta_i|). (The paper weighs clients by alpha_i; here each counts alike.) inner: inner products of all pairs, float64
    [n, n]. Returns float64 [n], which adds up to 1.
    """
    weights = torch.zeros(len(inner), dtype=torch.float64)
    for _ in range(iterations):
        along = inner @ weights
        apart = (inner.diagonal() - 2 * along + weights @ along).clamp_(min=0).sqrt_()
        pull = 1.0 / apart.clamp_(min=smoothing)
        weights = pull / pull.sum()
    return weights


@dataclass(eq=False)
class RFA(Rule):
    """The step goes along the geometric median of the deltas. iterations: of Weiszfeld's algorithm. smoothing: the least
    distance that a delta's weight is taken from (the paper's nu). `malicious` serves nearest-neighbour mixing and the check of
    numbers.
    """

    iterations: int = 100
    smoothing: float = 1e-6
    name: ClassVar[str] = "rfa"

    def __post_init__(self) -> None:
        super().__post_init__()
        within("iterations", self.iterations, first=1)
        within("smoothing", self.smoothing, above=0.0)

    def choose(self, cohort: Cohort) -> Choice:
        return Weighted(weiszfeld(cohort.inner, self.iterations, self.smoothing))
