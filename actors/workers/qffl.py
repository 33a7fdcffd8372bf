"""q-FFL's client (Li et al. 2020): local SGD, and the loss of the weights that it began with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shoal.actors.workers.local_sgd import LocalSGD
from shoal.nets.evaluation import Arrays, tallied
from shoal.protocol.beside import joined
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task


@dataclass(eq=False, repr=False)
class QFedAvgSGD(LocalSGD):
    """Local SGD with "loss", F_k(w), beside its delta, float32 [1]: the mean loss of all the client's examples, in evaluation
    mode, before the first step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.began = 0.0

    def _train(self, data: Arrays, client: int, task: Task) -> dict[str, tuple[float, float]]:
        total, count = tallied(self.flat.module, data, self.loss, max(self.batch_size, 1000))["loss"]
        self.began = total / count if count else 0.0
        return super()._train(data, client, task)

    def _delta(self, weights: Bundle) -> Bundle:
        return joined(super()._delta(weights), {"loss": np.array([self.began], np.float32)})
