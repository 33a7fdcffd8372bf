"""The client of FedProx with an adaptive mu: FedProx's, with the mu that its task brings, and the loss that it began with."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.actors.workers.qffl import QFedAvgSGD
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Work


@dataclass(eq=False, repr=False)
class AdaptiveProxSGD(QFedAvgSGD):
    """Local SGD with FedProx's term. brief: {"mu": mu}, float32 [1]; None: 0. "loss" goes up beside the delta, as in q-FFL."""

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        self.mu = 0.0 if brief is None else float(brief["mu"][0])
        return super().run(weights, client, task)
