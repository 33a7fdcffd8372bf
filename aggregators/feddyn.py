"""FedDyn (Acar et al. 2021, "Federated Learning Based on Dynamic Regularization", algorithm 1).

The one idea: a client's loss gets a linear term from its own past and a quadratic one around the server's weights, so that what
is stationary for all clients is stationary for their mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from shoal.aggregators.remembered import Floats
from shoal.aggregators.stateful import StatefulServer
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Moved, Task


@dataclass(frozen=True, slots=True)
class Dynamic:
    """h <- h - alpha share delta;  w <- w + delta - h / alpha. delta: the mean over the round's clients. share: |P| / m, the
    part of all clients that they are, so that alpha share delta is alpha / m times the sum over them."""

    alpha: float
    share: float = 1.0

    @property
    def moments(self) -> Mapping[str, float]:
        return {"h": 0.0}

    def __call__(self, w: Tensor, delta: Tensor, t: int, *moments: Tensor) -> tuple[Tensor, ...]:
        h = moments[0] - self.alpha * self.share * delta
        return delta - h / self.alpha, h


class FedDynServer(StatefulServer):
    """The server of algorithm 1: h and the weights move as Dynamic says, and g_k <- g_k - alpha (theta_k - theta).

    g_k, float32 [trainable], is the gradient of client k's loss where its last task ended, and zeros before its first task. The
    client is told g_k. The server computes the next g_k of the client's delta, so nothing else travels up.
    """

    def __init__(self, weights: Bundle, trainable: int | None = None, *, alpha: float, **options: Any) -> None:
        super().__init__(weights, trainable, beside={}, **{**options, "update": Dynamic(alpha)})
        self.alpha = alpha

    def brief(self, task: Task) -> Bundle | None:
        """{"gradient": g_k}, float32 [trainable]; None for an evaluation, and if g_k is zeros still."""
        g = self.row(task) if task.counts else None
        return None if g is None else Bundle.pack({"gradient": g})

    def took(self, client: int, delta: Bundle, arrays: dict[str, Floats], weight: float) -> None:
        g = self.remembered.of(client)
        moved = np.float32(-self.alpha) * delta.vector()[: self.trainable]
        self.remembered.put(client, moved if g is None else g + moved)

    def step(self) -> Moved:
        self.update = Dynamic(self.alpha, len(self.remembered.came) / self.clients)
        return super().step()
