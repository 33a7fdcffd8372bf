"""FedProx: a proximal term keeps clients near the round's weights, with a fixed weight mu or one that follows the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from shoal.aggregators import Aggregator
from shoal.jobs.methods.fedavg import FedAvg
from shoal.jobs.methods.method import Start
from shoal.jobs.methods.stateful import own_clients, own_numbers
from shoal.jobs.problems import Problem
from shoal.jobs.settings import option
from shoal.protocol.beside import with_beside
from shoal.protocol.layout import Layout

if TYPE_CHECKING:
    from shoal.actors.workers.local_sgd import LocalSGD
    from shoal.jobs.job import Job


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg with a proximal term in the clients' loss, which keeps clients near the round's weights (Li et al. 2020)."""

    name: ClassVar[str] = "fedprox"

    mu: float = option(0.01, "weight of the proximal term in a client's loss", above=0)
    adaptive_mu: bool = option(
        False, "mu rises by 0.1 when the clients' loss rises, and falls by 0.1 when it fell for five rounds in a row"
    )

    def trainer(self) -> type[LocalSGD]:
        if not self.adaptive_mu:
            return super().trainer()
        from shoal.actors.workers.adaptive_prox import AdaptiveProxSGD

        return AdaptiveProxSGD

    def layouts(self, problem: Problem, weights: Layout) -> Sequence[Layout]:
        return [with_beside(weights, {"loss": 1})] if self.adaptive_mu else super().layouts(problem, weights)

    def briefs(self, problem: Problem, weights: Layout) -> Sequence[Layout]:
        return [Layout.of({"mu": ("f4", (1,))})] if self.adaptive_mu else ()

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if self.adaptive_mu:
            own_clients(problem, "adaptive_mu=true")

    def fits(self, job: Job) -> None:
        if self.adaptive_mu:
            own_numbers(job, "adaptive_mu=true", more=True)

    def aggregator(self, start: Start, device: str) -> Aggregator:
        if not self.adaptive_mu:
            return super().aggregator(start, device)
        from shoal.aggregators.adaptive_prox import AdaptiveProxServer

        return AdaptiveProxServer(
            start.weights,
            start.trainable,
            mu=self.mu,
            update=self.update(),
            device=device,
            deterministic=self.deterministic,
            shares=self.cohort,
        )
