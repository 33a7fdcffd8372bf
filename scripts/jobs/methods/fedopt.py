"""FedAvgM, FedAdagrad, FedAdam, FedYogi: the mean of a round as a pseudo-gradient for the server's optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from shoal.jobs.methods.fedavg import InRounds
from shoal.jobs.methods.method import Start
from shoal.jobs.settings import option

if TYPE_CHECKING:
    from shoal.aggregators import Aggregator


@dataclass(frozen=True)
class FedAvgM(InRounds):
    """FedAvg with momentum at the server (Hsu et al. 2019)."""

    name: ClassVar[str] = "fedavgm"

    server_momentum: float = option(0.9, "momentum of the server's step", least=0, below=1)

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.fedopt import FedAvgMServer

        return FedAvgMServer(start.weights, start.trainable, beta=self.server_momentum, **self.shared(device))


@dataclass(frozen=True)
class FedAdagrad(InRounds):
    """Adagrad at the server (Reddi et al. 2021, algorithm 2)."""

    name: ClassVar[str] = "fedadagrad"

    server_lr: float = option(0.03, "learning rate of the server's step", above=0)
    tau: float = option(1e-3, "adaptivity: added to the root of the second moment", above=0)

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.fedopt import FedAdagradServer

        return FedAdagradServer(start.weights, start.trainable, tau=self.tau, **self.shared(device))


@dataclass(frozen=True)
class FedAdam(InRounds):
    """Adam at the server, without bias correction (Reddi et al. 2021, algorithm 2)."""

    name: ClassVar[str] = "fedadam"

    server_lr: float = option(0.03, "learning rate of the server's step", above=0)
    beta1: float = option(0.9, "decay of the first moment", least=0, below=1)
    beta2: float = option(0.99, "decay of the second moment", least=0, below=1)
    tau: float = option(1e-3, "adaptivity: added to the root of the second moment", above=0)

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.fedopt import FedAdamServer

        return FedAdamServer(start.weights, start.trainable, **self.shared(device))

    def shared(self, device: str) -> dict[str, Any]:
        return {**super().shared(device), "beta1": self.beta1, "beta2": self.beta2, "tau": self.tau}


@dataclass(frozen=True)
class FedYogi(FedAdam):
    """Yogi at the server (Reddi et al. 2021, algorithm 2)."""

    name: ClassVar[str] = "fedyogi"

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.fedopt import FedYogiServer

        return FedYogiServer(start.weights, start.trainable, **self.shared(device))
