"""A federated rule of your own: the coordinate-wise trimmed mean (Yin et al. 2018, definition 2).

shoal simulate examples/trimmed_mean.py
shoal simulate examples/trimmed_mean.py trim=0.2 cohort=20     # its settings are set like any other
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from shoal import FedAvg, Federated, Moved, option
from shoal.envs import datasets
from shoal.nets import models


class Trimmed:
    """Of each entry, the largest and smallest shares `trim` of the clients' values are left out, and the rest is averaged."""

    linear = False  # a sum over clients would hide each client's own value

    def __init__(self, weights, trim):
        self.now, self.trim, self.deltas = weights.copy(), trim, {}

    def weights(self):
        return self.now

    def fold(self, contribution):  # kept by client, so that the order of arrival changes no bit
        self.deltas[contribution.task.clients] = contribution.bundle.vector().copy()

    def step(self):
        values = np.sort([self.deltas[clients] for clients in sorted(self.deltas)], axis=0)
        out = int(self.trim * len(values))
        following = self.now.copy()  # whoever holds the weights of before may still look at them
        following.vector()[:] += values[out : len(values) - out].mean(axis=0)
        self.now, self.deltas = following, {}
        return Moved({"left_out": float(2 * out)})

    def state(self):  # what must survive a restart beside the weights: nothing
        return {}

    def load(self, weights, state):
        self.now, self.deltas = weights.copy(), {}


@dataclass(frozen=True)
class TrimmedMean(FedAvg):
    """FedAvg's rounds and clients, with another server."""

    name: ClassVar[str] = "trimmed"
    trim: float = option(0.1, "share of the clients that is left out at either end", least=0, below=0.5)

    def aggregator(self, start, device):
        return Trimmed(start.weights, self.trim)


job = Federated(models.mlp, datasets.digits, method=TrimmedMean, rounds=30)
