"""FedAvg and FedProx: rounds of a cohort, and the weighted mean of what its clients send."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from shoal.jobs.methods.local import LocalTraining
from shoal.jobs.methods.method import Start
from shoal.jobs.settings import option
from shoal.protocol.errors import UserError

if TYPE_CHECKING:
    from shoal.aggregators import Aggregator
    from shoal.coordinator.deciding.plans import Asked, Plan
    from shoal.coordinator.deciding.rules import Rules
    from shoal.jobs.problems import Problem


@dataclass(frozen=True)
class FedAvg(LocalTraining):
    """Federated averaging (McMahan et al. 2017), and the schedule of every method in synchronous rounds."""

    name: ClassVar[str] = "fedavg"

    cohort: int = option(10, "clients that are drawn for one round", least=1)
    quorum: int = option(0, "clients that suffice for a round once its deadline has passed (0: the whole cohort)", least=0)
    deadline: float = option(0.0, "seconds of a round after which the quorum suffices (0: none)", least=0)
    eval_cohort: int = option(0, "clients that evaluate the weights too, every eval_every rounds (0: none)", least=0)

    def check(self, problem: Problem) -> None:
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
        )

    def rules(self, sums: bool) -> Rules:
        from shoal.coordinator.deciding.rules import Rules

        return Rules(most=2 if sums else 32)

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.fedavg import FedAvg as Mean

        return Mean(start.weights, start.trainable, **self.shared(device))

    def shared(self, device: str) -> dict[str, Any]:
        """Arguments that every server of this family takes."""
        return {"lr": self.server_lr, "device": device, "deterministic": self.deterministic}


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg whose clients stay near the weights they were sent (Li et al. 2020): a proximal term in their loss."""

    name: ClassVar[str] = "fedprox"

    mu: float = option(0.01, "weight of the proximal term in a client's loss", above=0)
