"""Jobs in which a contribution is large and the weights are small, for slow links: one round of one client.

The one idea: the client does nothing, so that all the time there is goes into crossing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shoal.aggregators import Aggregator
from shoal.benchmarks.jobs import NoOp, Still, vector
from shoal.jobs.federated import Federated
from shoal.protocol.layout import Layout

FLOATS = {"small": 100_000, "large": 5_000_000}  # 0.4 and 20 MB


class Uploading(Federated):
    """The aggregator takes contributions in and forgets them."""

    @property
    def summed(self) -> bool:
        return False

    def aggregator(self, device: str) -> Aggregator:
        return Still(16)

    def layouts(self, weights: Layout) -> Sequence[Layout]:
        return [vector(FLOATS[self.name])]


def _job(name: str) -> Uploading:
    return Uploading(
        worker=lambda: NoOp(FLOATS[name]),
        weights=lambda: {"w": np.ones(16, np.float32)},
        name=name,
        clients=1,
        cohort=1,
        rounds=1,
        deterministic=False,
        eval_every=0,
        snapshot_every=1e12,
    )


small, large = _job("small"), _job("large")
