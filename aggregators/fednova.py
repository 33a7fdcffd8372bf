"""FedNova (Wang et al. 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization").

The one idea: a client that makes more steps would pull the mean towards its own optimum, so each delta is divided by how many
steps it is worth, and the mean direction is walked as far as the clients' steps go on average.
"""

from __future__ import annotations

import math
from typing import Any

from shoal.aggregators.remembered import Floats
from shoal.aggregators.stateful import Split
from shoal.nets.updates import SGD
from shoal.protocol.errors import ProtocolError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Moved


class FedNovaServer(Split):
    """x <- x + lr tau_eff sum(p_i (y_i - x) / ||a_i||_1), with tau_eff = sum(p_i ||a_i||_1) and p_i the client's share of the
    weight (equation 7 with d_i = G_i a_i / ||a_i||_1).

    A contribution has "steps", ||a_i||_1, beside its delta: the number of local steps for plain SGD. With momentum or a
    proximal term the paper's normalising vector a_i counts a step by what it adds to the whole move. Only trainable entries are
    divided; batch normalisation's statistics and counters move by the plain mean.
    """

    def __init__(self, weights: Bundle, trainable: int | None = None, *, lr: float = 1.0, **options: Any) -> None:
        super().__init__(weights, trainable, beside={"steps": 1}, **{**options, "update": SGD(lr)})
        self.lr = lr
        self.steps_of: list[tuple[float, float]] = []  # (weight, ||a_i||_1) of what was folded in

    def prepared(self, delta: Bundle, weight: float, arrays: dict[str, Floats]) -> tuple[Bundle, float]:
        if not (a := float(arrays["steps"][0])) > 0:
            raise ProtocolError(f"a client of FedNova's made {a:g} steps; expected a number above 0")
        delta.vector()[: self.trainable] /= a
        return delta, weight

    def took(self, client: int, delta: Bundle, arrays: dict[str, Floats], weight: float) -> None:
        self.steps_of.append((weight, float(arrays["steps"][0])))

    def step(self) -> Moved:
        """Metrics: those of FedAvgServer, and tau_eff."""
        whole = math.fsum(weight for weight, _ in self.steps_of)  # fsum: the same bits for any order of arrival
        tau = math.fsum(weight * a for weight, a in self.steps_of) / whole
        self.update = SGD(self.lr * tau)
        moved = super().step()
        return Moved({**moved.metrics, "tau_eff": tau})

    def _clear(self) -> None:
        super()._clear()
        self.steps_of = []
