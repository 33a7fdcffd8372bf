"""A job that sends 20 MB of weights for every version and gets a few bytes back.

The one idea: every version is a new buffer, so memory shows it if something keeps an old buffer from being freed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from shoal.aggregators import Aggregator
from shoal.benchmarks.jobs import NoOp, Still, vector
from shoal.coordinator.deciding.plans import Asked, Plan
from shoal.coordinator.deciding.plans.stream import Stream
from shoal.jobs.federated import Federated
from shoal.jobs.methods.fedbuff import FedBuff
from shoal.jobs.methods.method import Start
from shoal.jobs.problems import Problem
from shoal.protocol.layout import Layout
from shoal.protocol.work import Moved

FLOATS = 5_000_000


class Fresh(Still):
    """An aggregator that copies its weights at every step."""

    def step(self) -> Moved:
        self.bundle = self.bundle.copy()
        return Moved()


@dataclass(frozen=True)
class Broadcasting(FedBuff):
    """A method whose step takes the first `buffer` contributions made from the newest version and waits for no other."""

    name: ClassVar[str] = "broadcasting"

    def plan(self, asked: Asked, seed: int, sums: bool) -> Plan:
        return Stream(self.buffer, 0, clients=self.clients, seed=seed, asked=asked)

    def aggregator(self, start: Start, device: str) -> Aggregator:
        return Fresh(FLOATS)

    def layouts(self, problem: Problem, weights: Layout) -> Sequence[Layout]:
        return [vector(16)]


def _ones() -> Mapping[str, Any]:
    return {"w": np.ones(FLOATS, np.float32)}


job = Federated(
    worker=lambda: NoOp(16),
    weights=_ones,
    name="broadcasting",
    method=Broadcasting(clients=1_000, rounds=1_000_000, eval_every=0),
    journal="off",
    snapshot_every=1e12,
)
