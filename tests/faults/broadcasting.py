"""A job in which 20 MB of weights go out for every version and next to nothing comes back.

The one idea: every version is a new buffer, so that whoever keeps an old one from being freed shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shoal.aggregators import Aggregator
from shoal.benchmarks.jobs import NoOp, Still, vector
from shoal.coordinator.deciding.plans import Asked, Plan
from shoal.coordinator.deciding.plans.stream import Stream
from shoal.jobs.federated import Federated
from shoal.protocol.layout import Layout
from shoal.protocol.work import Moved

FLOATS = 5_000_000


class Fresh(Still):
    """Weights that are copied at every step."""

    def step(self) -> Moved:
        self.bundle = self.bundle.copy()
        return Moved()


class Broadcasting(Federated):
    """A version is made of the first `buffer` contributions that were made from the one before; nobody else is waited for."""

    def plan(self, asked: Asked) -> Plan:
        s = self.settings
        return Stream(s.buffer, 0, clients=s.clients, seed=self.seed, asked=asked)

    def aggregator(self, device: str) -> Aggregator:
        return Fresh(FLOATS)

    def layouts(self, weights: Layout) -> Sequence[Layout]:
        return [vector(16)]


def _ones() -> Mapping[str, Any]:
    return {"w": np.ones(FLOATS, np.float32)}


job = Broadcasting(
    worker=lambda: NoOp(16),
    weights=_ones,
    name="broadcasting",
    aggregator="fedbuff",
    clients=1_000,
    rounds=1_000_000,
    eval_every=0,
    journal="off",
    snapshot_every=1e12,
)
