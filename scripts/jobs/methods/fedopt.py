"""FedAvgM, FedAdagrad, FedAdam, FedYogi: the mean delta of a round is a pseudo-gradient for the server's optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from shoal.jobs.methods.fedavg import InRounds
from shoal.jobs.settings import option

if TYPE_CHECKING:
    from shoal.nets.updates import Update


@dataclass(frozen=True)
class FedAvgM(InRounds):
    """FedAvg with momentum at the server: v <- beta v + delta; x <- x + lr v (Hsu et al. 2019, section 4)."""

    name: ClassVar[str] = "fedavgm"

    server_momentum: float = option(0.9, "momentum of the server's step", least=0, below=1)

    def update(self) -> Update:
        from shoal.nets.updates import SGD

        return SGD(self.server_lr, self.server_momentum)


@dataclass(frozen=True)
class FedAdagrad(InRounds):
    """Adagrad at the server (Reddi et al. 2021, algorithm 2)."""

    name: ClassVar[str] = "fedadagrad"

    server_lr: float = 0.03
    tau: float = option(1e-3, "number added to the root of the second moment in the server's step", above=0)

    def update(self) -> Update:
        from shoal.aggregators.fedopt import ServerAdagrad

        return ServerAdagrad(self.server_lr, tau=self.tau)


@dataclass(frozen=True)
class FedAdam(FedAdagrad):
    """Adam at the server, without bias correction (Reddi et al. 2021, algorithm 2)."""

    name: ClassVar[str] = "fedadam"

    beta1: float = option(0.9, "decay of the first moment in the server's step, for each round", least=0, below=1)
    beta2: float = option(0.99, "decay of the second moment in the server's step, for each round", least=0, below=1)

    def update(self) -> Update:
        from shoal.aggregators.fedopt import ServerAdam

        return ServerAdam(self.server_lr, self.beta1, self.tau, self.beta2)


@dataclass(frozen=True)
class FedYogi(FedAdam):
    """Yogi at the server (Reddi et al. 2021, algorithm 2)."""

    name: ClassVar[str] = "fedyogi"

    def update(self) -> Update:
        from shoal.aggregators.fedopt import ServerYogi

        return ServerYogi(self.server_lr, self.beta1, self.tau, self.beta2)
