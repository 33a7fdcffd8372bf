"""q-FFL by q-FedAvg (Li et al. 2020, "Fair Resource Allocation in Federated Learning", algorithm 2).

The one idea: a client whose loss is larger counts more, by the q-th power of its loss, and the step's length is an estimate of
the Lipschitz constant that this brings about, so that no learning rate has to be tuned for each q.
"""

from __future__ import annotations

import math
from typing import Any

from shoal.aggregators.remembered import Floats
from shoal.aggregators.stateful import Split
from shoal.nets.updates import SGD
from shoal.protocol.errors import ProtocolError
from shoal.protocol.grid import square
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Moved

LEAST = 2.0**-20  # least weight that a sum takes
SCALE = 2.0**10  # of all weights, which leaves the mean as it is: so losses below 1 keep their digits in higher powers
TINY = 1e-10  # added to a loss, as in the authors' code, so that a loss of 0 has powers too


class QFedAvgServer(Split):
    """w <- w - sum(Delta_k) / sum(h_k), with dw_k = L (w - w_k), Delta_k = F_k^q dw_k and
    h_k = q F_k^(q-1) ||dw_k||^2 + L F_k^q.

    L = 1 / lr, of the clients' learning rate. F_k is the client's loss at w, "loss" beside its delta, float32 [1]. With q = 0
    it is FedAvg. A client's weight multiplies both Delta_k and h_k. Batch normalisation's statistics and counters move by the
    mean with weights F_k^q.
    """

    def __init__(
        self, weights: Bundle, trainable: int | None = None, *, q: float, client_lr: float, lr: float = 1.0, **options: Any
    ) -> None:
        super().__init__(weights, trainable, beside={"loss": 1}, **{**options, "update": SGD(lr)})
        self.q, self.client_lr, self.lr = q, client_lr, lr
        self.terms: list[tuple[float, float]] = []  # (weight F^q, weight h / L) of what was folded in, times SCALE

    def prepared(self, delta: Bundle, weight: float, arrays: dict[str, Floats]) -> tuple[Bundle, float]:
        if not (loss := float(arrays["loss"][0])) >= 0:
            raise ProtocolError(f"q-FFL: a client's loss is {loss:g}; powers need a loss from 0")
        return delta, max(LEAST, SCALE * weight * (loss + TINY) ** self.q)

    def took(self, client: int, delta: Bundle, arrays: dict[str, Floats], weight: float) -> None:
        loss = float(arrays["loss"][0]) + TINY
        lipschitz = 1.0 / self.client_lr
        length = square(delta.vector()[: self.trainable])  # ||dw_k||^2 / L^2
        self.terms.append((weight, weight + weight / loss * self.q * lipschitz * length))

    def step(self) -> Moved:
        """Metrics: those of FedAvgServer. `examples` is the sum of weight F^q."""
        powers, lipschitz = (math.fsum(column) for column in zip(*self.terms, strict=True))
        self.update = SGD(self.lr * powers / lipschitz)
        moved = super().step()
        return Moved({**moved.metrics, "examples": powers / SCALE})

    def _clear(self) -> None:
        super()._clear()
        self.terms = []
