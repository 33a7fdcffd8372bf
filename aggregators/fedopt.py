"""Updates of adaptive servers: FedAdagrad, FedAdam, FedYogi.

The one idea: the mean delta is a pseudo-gradient. It already points where to go, so it is added, not subtracted. As in
Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2, there is no bias correction: the second moment starts from
tau**2 instead. Unlike in algorithm 2, clients are averaged by weight, as in the paper's algorithm 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.nets.updates import Ranged


@dataclass(frozen=True, slots=True)
class ServerAdagrad(Ranged):
    """FedAdagrad: m <- beta1 m + (1 - beta1) delta; v <- v + delta**2; x <- x + lr m / (sqrt(v) + tau). beta1 is 0, as in the
    paper's experiments."""

    lr: float = 0.03
    beta1: float = 0.0
    tau: float = 1e-3

    @property
    def moments(self) -> Mapping[str, float]:
        return {"m": 0.0, "v": self.tau**2}

    def __call__(self, w: Tensor, delta: Tensor, t: int, *moments: Tensor) -> tuple[Tensor, ...]:
        m, v = moments
        m = self.beta1 * m + (1 - self.beta1) * delta
        v = self.second(v, delta * delta)
        return self.lr * m / (v.sqrt() + self.tau), m, v

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """The next v, from v and delta**2."""
        return v + square


@dataclass(frozen=True, slots=True)
class ServerAdam(ServerAdagrad):
    """FedAdam: v <- beta2 v + (1 - beta2) delta**2. Unlike torch.optim.Adam: no bias correction, and v starts from tau**2."""

    beta1: float = 0.9
    beta2: float = 0.99

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return self.beta2 * v + (1 - self.beta2) * square


@dataclass(frozen=True, slots=True)
class ServerYogi(ServerAdam):
    """FedYogi: v <- v - (1 - beta2) delta**2 sign(v - delta**2)."""

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return v - (1 - self.beta2) * square * torch.sign(v - square)
