"""FedDyn: each client's loss is regularised anew in each round, so that clients and server agree on where to rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from shoal.aggregators import Aggregator
from shoal.jobs.methods.fedavg import InRounds
from shoal.jobs.methods.method import Start
from shoal.jobs.methods.stateful import Stateful, alike, unused
from shoal.jobs.problems import Problem
from shoal.jobs.settings import option

if TYPE_CHECKING:
    from shoal.actors.workers.local_sgd import LocalSGD


@dataclass(frozen=True)
class FedDyn(Stateful):
    """Dynamic regularisation (Acar et al. 2021, algorithm 1). alpha_coef is the paper's alpha, by its name in the authors'
    code: `alpha` is a setting of the partition."""

    name: ClassVar[str] = "feddyn"

    weighting: str = alike()
    server_lr: float = unused("server_lr", InRounds)
    mu: float = unused("mu", InRounds)
    alpha_coef: float = option(0.01, "weight of the quadratic term in a client's loss: alpha in FedDyn's paper", above=0)

    def trainer(self) -> type[LocalSGD]:
        from shoal.actors.workers.feddyn import FedDynSGD

        return FedDynSGD

    def down(self, problem: Problem) -> Mapping[str, int]:
        return {"gradient": self.trainable(problem)}

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.feddyn import FedDynServer

        return FedDynServer(start.weights, start.trainable, alpha=self.alpha_coef, **self.options(device))
