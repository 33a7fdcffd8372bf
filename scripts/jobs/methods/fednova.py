"""FedNova: deltas are normalised by the clients' local steps, so that many steps of one client are no larger vote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from shoal.aggregators import Aggregator
from shoal.jobs.methods.method import Start
from shoal.jobs.methods.stateful import Apiece
from shoal.jobs.problems import Problem
from shoal.jobs.settings import shown
from shoal.protocol.errors import UserError

if TYPE_CHECKING:
    from shoal.actors.workers.local_sgd import LocalSGD


@dataclass(frozen=True)
class FedNova(Apiece):
    """Normalised averaging (Wang et al. 2020), for local SGD, with momentum and with FedProx's term."""

    name: ClassVar[str] = "fednova"

    def trainer(self) -> type[LocalSGD]:
        from shoal.actors.workers.fednova import FedNovaSGD

        return FedNovaSGD

    def beside(self, problem: Problem) -> Mapping[str, int]:
        return {"steps": 1}

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if self.optimizer not in ("sgd", "momentum"):
            why = "FedNova's normalising vectors are those of SGD, with or without momentum"
            raise UserError(f"optimizer={shown(self.optimizer)}: {why}; optimizer=sgd")

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.fednova import FedNovaServer

        return FedNovaServer(start.weights, start.trainable, lr=self.server_lr, **self.options(device))
