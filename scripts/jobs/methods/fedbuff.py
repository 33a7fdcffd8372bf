"""FedBuff: clients on a stream. Every `buffer` contributions make a step, and a contribution with more lag counts less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shoal.aggregators import Aggregator
from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.plans import Asked, Plan
from shoal.coordinator.deciding.plans.stream import Stream
from shoal.jobs.methods.local import LocalTraining
from shoal.jobs.methods.method import Start
from shoal.jobs.settings import option


@dataclass(frozen=True)
class FedBuff(LocalTraining):
    """Buffered asynchronous aggregation (Nguyen et al. 2022)."""

    name: ClassVar[str] = "fedbuff"

    buffer: int = option(10, "contributions that make one step (the paper's K)", least=1)
    max_lag: int = option(20, "largest lag of a contribution that is used, in versions", least=0)
    staleness: float = option(
        0.5, "exponent of the factor (1 + lag) ** -staleness of a contribution's weight (0: lag has no effect)", least=0
    )
    normalise: bool = option(
        True,
        "deltas are divided by the sum of their weights with the factor for lag; false: without it, as in the paper, so that "
        "stale deltas make a shorter step, also with buffer=1",
    )

    def plan(self, asked: Asked, seed: int, sums: bool) -> Plan:
        return Stream(
            self.buffer, self.max_lag, clients=self.clients, seed=seed, asked=asked, attendance=self.attendance(asked)
        )

    def bounds(self, sums: bool) -> Bounds:
        return Bounds(most=2)

    def aggregator(self, start: Start, device: str) -> Aggregator:
        return discounting(self, start, device, self.staleness, self.buffer)


def discounting(method: LocalTraining, start: Start, device: str, exponent: float, shares: int) -> Aggregator:
    """The aggregator of a stream whose contributions count less with their lag. shares: contributions of which each may fill
    its part of an exact sum's range."""
    from shoal.aggregators.fedbuff import FedBuffServer

    own = {"lr": method.server_lr, "exponent": exponent, "device": device, "shares": shares}
    return FedBuffServer(start.weights, start.trainable, **method.arguments(FedBuffServer, **own))
