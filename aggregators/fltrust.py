"""FLTrust (Cao et al. 2021, "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping").

The one idea: the server has a little clean data, and trains on it each round as a client would. A client is trusted as far as
its delta points where the server's own does, and no delta counts with another length than the server's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from shoal.aggregators.robust import Choice, Cohort, Rule, Weighted
from shoal.nets.flat import as_tensor
from shoal.protocol.layout import Bundle


def trust(along: Tensor, norms: Tensor, own: float) -> Tensor:
    """Trust scores (the paper's equation 2): ReLU of the cosine of the angle between each delta and the server's own.

    along: inner products with the server's delta, float64 [n]. norms: L2 norms of the deltas, float64 [n]. own: of the
    server's. A delta of length 0 has score 0.
    """
    return torch.where(norms * own > 0, along / (norms * own), 0.0).clamp_(min=0)


@dataclass(eq=False, kw_only=True)
class FLTrust(Rule):
    """The step goes along sum_i TS_i |g_0| / |g_i| g_i / sum_i TS_i (the paper's equations 3 and 4), with the server's own
    delta g_0.

    root: (weights, version) -> the server's own delta, which is made anew in each round.
    Arrays that are not trained move by the mean with the trust scores as weights. If no client is trusted, all weights stay.
    """

    root: Callable[[Bundle, int], Bundle]
    name: ClassVar[str] = "fltrust"

    def choose(self, cohort: Cohort) -> Choice | None:
        own = as_tensor(self.root(cohort.weights, cohort.version).vector())[: cohort.trainable].double()
        length, norms = float(own.norm()), cohort.inner.diagonal().sqrt()
        scores = trust(cohort.along(own), norms, length)
        if not scores.any():
            return None
        shares = scores / scores.sum()
        return Weighted(torch.where(norms > 0, shares * length / norms, 0.0), shares)
