"""Updates of adaptive servers: FedAdagrad, FedAdam, FedYogi.

The one idea: the mean delta is a pseudo-gradient. It already points where to go, so it is added, not subtracted. As in
Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2, there is no bias correction: the second moment starts from
tau**2 instead. Unlike in algorithm 2, clients are averaged by weight, as in the paper's algorithm 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from shoal.nets.updates import within

Second: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""The rule of a second moment: (v, delta**2) -> the next v."""


def adagrad(v: Tensor, square: Tensor) -> Tensor:
    return v + square


def adam(beta2: float) -> Second:
    within("beta2", beta2, below=1.0)
    return lambda v, square: beta2 * v + (1 - beta2) * square


def yogi(beta2: float) -> Second:
    within("beta2", beta2, below=1.0)
    return lambda v, square: v - (1 - beta2) * square * torch.sign(v - square)


@dataclass(frozen=True, slots=True)
class Adaptive:
    """m <- beta1 m + (1 - beta1) delta; v <- second(v, delta**2); x <- x + lr m / (sqrt(v) + tau)."""

    second: Second
    lr: float
    beta1: float
    tau: float

    def __post_init__(self) -> None:
        within("lr", self.lr, above=0.0)
        within("beta1", self.beta1, below=1.0)
        within("tau", self.tau, above=0.0)

    @property
    def moments(self) -> Mapping[str, float]:
        return {"m": 0.0, "v": self.tau**2}

    def __call__(self, w: Tensor, delta: Tensor, t: int, *moments: Tensor) -> tuple[Tensor, ...]:
        m, v = moments
        m = self.beta1 * m + (1 - self.beta1) * delta
        v = self.second(v, delta * delta)
        return self.lr * m / (v.sqrt() + self.tau), m, v


def fedadagrad(lr: float = 0.03, beta1: float = 0.0, tau: float = 1e-3) -> Adaptive:
    """FedAdagrad (Reddi et al. 2021, algorithm 2). beta1 is 0, as in the paper's experiments."""
    return Adaptive(adagrad, lr, beta1, tau)


def fedadam(lr: float = 0.03, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3) -> Adaptive:
    """FedAdam (Reddi et al. 2021, algorithm 2). Unlike torch.optim.Adam: no bias correction, and v starts from tau**2."""
    return Adaptive(adam(beta2), lr, beta1, tau)


def fedyogi(lr: float = 0.03, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3) -> Adaptive:
    """FedYogi (Reddi et al. 2021, algorithm 2)."""
    return Adaptive(yogi(beta2), lr, beta1, tau)
