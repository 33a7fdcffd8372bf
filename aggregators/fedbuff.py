"""Buffered asynchronous aggregation (Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation").

The one idea: FedAvg with a staleness weight. A delta made from weights that are `lag` versions old counts less. The plan
says how many deltas are collected before a step (`Stream(batch, max_lag)`).
"""

from __future__ import annotations

from typing import ClassVar

import torch

from shoal.aggregators.fedavg import FedAvgServer
from shoal.nets.updates import Update
from shoal.protocol.errors import within
from shoal.protocol.grid import exact_weight, plain_weight
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution


class FedBuffServer(FedAvgServer):
    """w <- w + lr * sum(s(lag) * weight * delta) / sum(s(lag) * weight), with s(lag) = (1 + lag) ** -exponent.

    exponent: how fast s falls with the lag; 1/2 as in the paper, 0: a constant weight.
    normalise: False divides by sum(weight) alone, so that a step of stale deltas is also shorter. If all weights are 1, that
    is the paper's algorithm 1 (the sum over K). With a batch of 1 it is a step of lr * s(lag) * delta.
    update: server optimizer (nets/updates.py, fedopt.py), in place of SGD(lr); None: SGD(lr).
    """

    linear: ClassVar[bool] = False  # a delta's weight depends on its lag, which only the coordinator knows

    def __init__(
        self,
        weights: Bundle,
        trainable: int | None = None,
        *,
        lr: float = 1.0,
        exponent: float = 0.5,
        normalise: bool = True,
        update: Update | None = None,
        device: torch.device | str = "cpu",
        deterministic: bool = True,
        shares: int = 1,
    ) -> None:
        within("exponent", exponent)
        super().__init__(weights, trainable, lr=lr, update=update, device=device, deterministic=deterministic, shares=shares)
        self.exponent, self.normalise = exponent, normalise
        self.undiscounted = 0.0

    def fold(self, contribution: Contribution) -> None:
        weight = contribution.work.weight
        undiscounted = self.undiscounted + (exact_weight(weight) if self.sum.gauge.exact else plain_weight(weight))
        super().fold(contribution)  # may raise: nothing is counted then
        self.undiscounted = undiscounted

    def weight_of(self, contribution: Contribution) -> float:
        return float(contribution.work.weight * (1.0 + contribution.lag) ** -self.exponent)

    def divisor(self) -> float:
        return self.sum.weight if self.normalise else self.undiscounted

    def _clear(self) -> None:
        super()._clear()
        self.undiscounted = 0.0
