"""FedProx with an adaptive mu (Li et al. 2020, "Federated Optimization in Heterogeneous Networks", section 5.3.2).

The one idea: mu rises at once when the loss rises, and falls when the loss has fallen for some rounds in a row.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from shoal.aggregators import State
from shoal.aggregators.remembered import Floats
from shoal.aggregators.stateful import Split
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Moved, Task

STEP = 0.1  # by which mu changes
PATIENCE = 5  # rounds in a row with a lower loss, after which mu falls


class AdaptiveProxServer(Split):
    """FedAvg's server with mu for the clients: mu + 0.1 after a round whose loss is above that of the round before, and
    max(0, mu - 0.1) after five rounds in a row whose loss is below that of the round before.

    A round's loss is the mean over its cohort, by weight, of the clients' loss at the round's weights: "loss" beside each
    delta, float32 [1]. A task's brief is {"mu": mu}, float32 [1].
    """

    def __init__(self, weights: Bundle, trainable: int | None = None, *, mu: float, **options: Any) -> None:
        super().__init__(weights, trainable, beside={"loss": 1}, **options)
        self.mu = mu
        self.before = math.inf
        self.fell = 0  # rounds in a row in which the loss fell
        self.losses: list[tuple[float, float]] = []  # (weight, weight * loss) of what was folded in

    def brief(self, task: Task) -> Bundle | None:
        """{"mu": mu}, float32 [1]; None for an evaluation."""
        return Bundle.pack({"mu": np.array([self.mu], np.float32)}) if task.counts else None

    def took(self, client: int, delta: Bundle, arrays: dict[str, Floats], weight: float) -> None:
        self.losses.append((weight, weight * float(arrays["loss"][0])))

    def step(self) -> Moved:
        """Metrics: those of FedAvgServer, and mu, as the clients of this round had it."""
        weight, total = (math.fsum(column) for column in zip(*self.losses, strict=True))  # the same in any order of arrival
        used, loss = self.mu, total / weight
        moved = super().step()
        self.fell = self.fell + 1 if loss < self.before else 0
        if loss > self.before:
            self.mu += STEP
        elif self.fell == PATIENCE:
            self.mu, self.fell = max(0.0, self.mu - STEP), 0
        self.before = loss
        return Moved({**moved.metrics, "mu": used})

    def _clear(self) -> None:
        super()._clear()
        self.losses = []

    def state(self) -> State:
        return {**super().state(), "prox": np.array([self.mu, self.before, self.fell], np.float64)}

    def load(self, weights: Bundle, state: State) -> None:
        if state["prox"].shape != (3,):
            raise ValueError(f"saved state: 'prox' must have shape [3], found {list(state['prox'].shape)}")
        super().load(weights, state)
        self.mu, self.before, self.fell = float(state["prox"][0]), float(state["prox"][1]), int(state["prox"][2])
