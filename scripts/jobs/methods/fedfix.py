"""FedFix: clients on a stream whose steps follow the clock. What has come is averaged, and stale deltas count less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shoal.aggregators import Aggregator
from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.plans import Asked, Plan
from shoal.coordinator.deciding.plans.periods import Periods
from shoal.jobs.methods.fedbuff import discounting
from shoal.jobs.methods.local import LocalTraining
from shoal.jobs.methods.method import Start
from shoal.jobs.settings import option

SHARES = 4096  # contributions of which each may fill its part of an exact sum's range: more than come in one period


@dataclass(frozen=True)
class FedFix(LocalTraining):
    """Semi-asynchronous aggregation at fixed times (Fraboni, Vidal, Kameni and Lorenzi, JMLR 2023: FedFix).

    Every `deadline` seconds the deltas that have come since the last step make the next:
    w <- w + server_lr * sum(s(lag) n delta) / sum(s(lag) n), with s(lag) = (1 + lag) ** -staleness and n the client's weight.
    The paper's weights are constants of each client; the factor s is FedAsync's (Xie et al. 2019). staleness=0 leaves it out.
    """

    name: ClassVar[str] = "fedfix"

    deadline: float = option(10.0, "seconds from one step to the next", above=0)
    quorum: int = option(1, "contributions that a step needs; if fewer have come at its time, the step waits for them", least=1)
    max_lag: int = option(20, "largest lag of a contribution that is used, in versions", least=0)
    staleness: float = option(
        0.5, "exponent of the factor (1 + lag) ** -staleness of a contribution's weight (0: lag has no effect)", least=0
    )

    def plan(self, asked: Asked, seed: int, sums: bool) -> Plan:
        return Periods(
            self.deadline,
            self.max_lag,
            least=self.quorum,
            clients=self.clients,
            seed=seed,
            asked=asked,
            attendance=self.attendance(asked),
        )

    def bounds(self, sums: bool) -> Bounds:
        return Bounds(most=2)

    def aggregator(self, start: Start, device: str) -> Aggregator:
        return discounting(self, start, device, self.staleness, SHARES)
