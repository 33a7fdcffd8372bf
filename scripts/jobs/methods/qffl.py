"""q-FFL: clients with larger losses count more, so that accuracy is spread more evenly (Li et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from shoal.aggregators import Aggregator
from shoal.jobs.methods.method import Start
from shoal.jobs.methods.stateful import Apiece
from shoal.jobs.problems import Problem
from shoal.jobs.settings import option

if TYPE_CHECKING:
    from shoal.actors.workers.local_sgd import LocalSGD


@dataclass(frozen=True)
class QFFL(Apiece):
    """q-fair federated learning by q-FedAvg (Li et al. 2020, algorithm 2), with L = 1 / lr."""

    name: ClassVar[str] = "qffl"
    problems: ClassVar[tuple[str, ...]] = ("supervised",)  # the loss must be above 0

    q: float = option(1.0, "power of a client's loss by which the client counts: 0 is fedavg, larger is fairer", least=0)

    def trainer(self) -> type[LocalSGD]:
        from shoal.actors.workers.qffl import QFedAvgSGD

        return QFedAvgSGD

    def beside(self, problem: Problem) -> Mapping[str, int]:
        return {"loss": 1}

    def check(self, problem: Problem) -> None:
        super().check(problem)
        self.plain_steps("q-FedAvg takes 1 / lr of plain SGD for the Lipschitz constant of the loss")

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.qffl import QFedAvgServer

        own = {"q": self.q, "client_lr": self.lr, "lr": self.server_lr}
        return QFedAvgServer(start.weights, start.trainable, **own, **self.options(device))
