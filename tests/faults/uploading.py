"""Jobs with a large contribution and small weights, for slow links: one round of one client.

The one idea: the client does nothing, so all the time goes into crossing the link.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from shoal.aggregators import Aggregator
from shoal.benchmarks.jobs import NoOp, Still, vector
from shoal.jobs.federated import Federated
from shoal.jobs.job import Job
from shoal.jobs.methods.fedavg import FedAvg
from shoal.jobs.methods.method import Start
from shoal.jobs.problems import Problem
from shoal.protocol.layout import Layout

FLOATS = {"small": 100_000, "large": 5_000_000}  # 0.4 and 20 MB


@dataclass(frozen=True)
class Uploading(FedAvg):
    """A method whose aggregator forgets each contribution."""

    name: ClassVar[str] = "uploading"

    floats: int = 0

    def aggregator(self, start: Start, device: str) -> Aggregator:
        return Still(16)

    def layouts(self, problem: Problem, weights: Layout) -> Sequence[Layout]:
        return [vector(self.floats)]


def _job(name: str) -> Job:
    return Federated(
        worker=lambda: NoOp(FLOATS[name]),
        weights=lambda: {"w": np.ones(16, np.float32)},
        method=Uploading(floats=FLOATS[name], clients=1, cohort=1, rounds=1, deterministic=False, eval_every=0),
        name=name,
        snapshot_every=1e12,
    )


small, large = _job("small"), _job("large")
