"""Figures of importance ratios (effective sample size), and weights of trajectories by their lag.

The one idea: a batch that an older policy made is worth fewer rows than it has. The effective sample size says how many, and
it needs nothing but the ratios.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def effective(ratio: Tensor, mask: Tensor | None = None) -> Tensor:
    """The effective sample size as a share of the rows, from above 0 to 1: (sum of ratios)**2 / (rows * sum of ratios**2)
    (Kish 1965). 1: all ratios are alike. mask: rows that count, as many as ratios; None: all."""
    if mask is not None:
        ratio = ratio.where(mask, 0.0)
    rows = ratio.numel() if mask is None else mask.sum()
    return ratio.sum() ** 2 / (rows * ratio.square().sum()).clamp(min=torch.finfo(ratio.dtype).tiny)


WEIGHTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "sqrt": lambda lag: (1 + lag) ** -0.5,
    "inverse": lambda lag: 1 / (1 + lag),
}
"""lag_weight -> the weight of a trajectory from its lag in versions: FedBuff's (Nguyen et al. 2022) and its square."""
