"""FedAvg and FedProx: rounds of a cohort, and the weighted mean of what its clients send."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from shoal.jobs.methods.local import OPTIMIZERS, LocalTraining, check_made
from shoal.jobs.methods.method import Start
from shoal.jobs.settings import option
from shoal.protocol.errors import UserError

if TYPE_CHECKING:
    from shoal.aggregators import Aggregator
    from shoal.coordinator.deciding.plans import Asked, Plan
    from shoal.coordinator.deciding.plans.selection import Select
    from shoal.coordinator.deciding.rules import Rules
    from shoal.jobs.problems import Problem
    from shoal.nets.updates import Update


@dataclass(frozen=True)
class InRounds(LocalTraining):
    """Federated methods in synchronous rounds: a cohort works on one version, and its contributions make the next."""

    cohort: int = option(10, "clients that one round asks", least=1)
    select: str = option("uniform", "how a round's clients are chosen", choices=("uniform", "power_of_choice"), own=True)
    candidates: int = option(
        0,
        "clients of which those with the largest loss are chosen (0: twice the cohort)",
        least=0,
        of=("select", ("power_of_choice",)),
    )
    quorum: int = option(0, "clients that suffice for a round once its deadline has passed (0: the whole cohort)", least=0)
    deadline: float = option(0.0, "seconds of a round after which the quorum suffices (0: none)", least=0)
    eval_cohort: int = option(0, "clients that evaluate the weights too, every eval_every rounds (0: none)", least=0)

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if self.candidates > self.clients:
            raise UserError(f"candidates={self.candidates}: allowed is from 0 to clients={self.clients}")
        if self.cohort > self.clients:
            raise UserError(f"cohort={self.cohort}: allowed is from 1 to clients={self.clients}")
        if self.quorum > self.cohort:
            raise UserError(f"quorum={self.quorum}: allowed is from 0 to cohort={self.cohort}")
        if self.quorum and not self.deadline:
            raise UserError(f"quorum={self.quorum}: a quorum suffices once a deadline has passed; deadline=60, say")
        if self.deadline and not self.quorum:
            raise UserError(
                f"deadline={self.deadline:g}: it ends no round without a quorum; quorum={self.cohort // 2 or 1}, say"
            )
        if self.eval_cohort and not self.eval_every:
            raise UserError(f"eval_cohort={self.eval_cohort}: with eval_every=0 no client evaluates; eval_every=10, say")

    def plan(self, asked: Asked, seed: int, sums: bool) -> Plan:
        from shoal.coordinator.deciding.plans.rounds import Rounds

        return Rounds(
            self.clients,
            self.cohort,
            quorum=self.quorum,
            deadline=self.deadline,
            seed=seed,
            summed=sums,
            evaluate_every=self.eval_every if self.eval_cohort else 0,
            evaluate_cohort=self.eval_cohort,
            asked=asked,
            select=self.selection(seed),
        )

    def selection(self, seed: int) -> Select | None:
        """(version, how many, news) -> clients; None is uniform."""
        if callable(self.select):
            return self.select
        if self.select == "uniform":
            return None
        from shoal.coordinator.deciding.plans.selection import power_of_choice

        return power_of_choice(self.clients, seed, self.candidates or min(self.clients, 2 * self.cohort))

    def rules(self, sums: bool) -> Rules:
        from shoal.coordinator.deciding.rules import Rules

        return Rules(most=2 if sums else 32)

    def update(self) -> Update:
        """The server's optimizer, for which the mean of the clients' deltas is the way to go."""
        raise NotImplementedError

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.fedavg import FedAvgServer

        deterministic = self.deterministic
        return FedAvgServer(start.weights, start.trainable, update=self.update(), device=device, deterministic=deterministic)


@dataclass(frozen=True)
class FedAvg(InRounds):
    """Federated averaging (McMahan et al. 2017); with another server_optimizer than SGD, of FedOpt's kind."""

    name: ClassVar[str] = "fedavg"

    server_optimizer: str = option(
        "sgd", "optimizer of the server, for which the mean of the deltas is the way to go", choices=OPTIMIZERS, own=True
    )

    def update(self) -> Update:
        from shoal.nets.updates import update_of

        return update_of(self.server_optimizer, lr=self.server_lr)

    def check(self, problem: Problem) -> None:
        super().check(problem)
        check_made(self, "server_optimizer", "server_lr")


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg whose clients stay near the weights they were sent (Li et al. 2020): a proximal term in their loss."""

    name: ClassVar[str] = "fedprox"

    mu: float = option(0.01, "weight of the proximal term in a client's loss", above=0)
