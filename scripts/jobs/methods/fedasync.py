"""FedAsync: clients on a stream, of which each contribution makes a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from shoal.actors import Worker
from shoal.actors.workers.whole import Whole
from shoal.aggregators import Aggregator
from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.plans import Asked, Plan
from shoal.coordinator.deciding.plans.stream import Stream
from shoal.jobs.methods.local import LocalTraining
from shoal.jobs.methods.method import Start
from shoal.jobs.methods.stateful import as_they_are
from shoal.jobs.problems import Problem
from shoal.jobs.settings import option
from shoal.protocol.errors import UserError

if TYPE_CHECKING:
    from shoal.jobs.job import Job

REPLACED = ("sign_flip", "gaussian", "alie", "ipm", "mimic")


@dataclass(frozen=True)
class FedAsync(LocalTraining):
    """Asynchronous federated optimisation (Xie et al. 2019, algorithm 1): w <- (1 - m) w + m w_client, for each client that
    comes, with m = mixing * s(lag)."""

    name: ClassVar[str] = "fedasync"

    mixing: float = option(0.6, "share of a fresh client's weights in the next weights (the paper's alpha)", above=0, most=1)
    staleness_function: str = option(
        "polynomial",
        "factor of the mixing by lag: 1 (constant); 1 up to hinge_b, then 1 / (hinge_a (lag - hinge_b) + 1) (hinge); "
        "(1 + lag) ** -staleness (polynomial)",
        choices=("constant", "hinge", "polynomial"),
    )
    staleness: float = option(
        0.5, "exponent of the factor of the mixing (the paper's a)", least=0, of={"staleness_function": ("polynomial",)}
    )
    hinge_a: float = option(
        10.0, "steepness of the factor of the mixing above hinge_b", least=0, of={"staleness_function": ("hinge",)}
    )
    hinge_b: float = option(
        4.0, "largest lag, in versions, that leaves the mixing as it is", least=0, of={"staleness_function": ("hinge",)}
    )
    max_lag: int = option(200, "largest lag of a contribution that is used, in versions", least=0)
    mu: float = option(0.005, "weight of the proximal term in a client's loss (the paper's rho; 0: no such term)", least=0)

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if self.server_lr != 1.0:
            raise UserError(f"server_lr={self.server_lr:g}: fedasync mixes models and makes no server step; mixing=0.3, say")

    def fits(self, job: Job) -> None:
        super().fits(job)
        why = "a client of fedasync sends its weights and no delta"
        as_they_are(job, f"{why}, which these codecs are for", why)
        for wrap in job.around:
            if (attack := getattr(wrap, "attack", "none")) in REPLACED:
                raise UserError(f"attack={attack}: {why}, which this attack replaces; attack=label_flip, say")

    def plan(self, asked: Asked, seed: int, sums: bool) -> Plan:
        return Stream(1, self.max_lag, clients=self.clients, seed=seed, asked=asked, attendance=self.attendance(asked))

    def bounds(self, sums: bool) -> Bounds:
        return Bounds(most=2)

    def worker(self, problem: Problem, seed: int) -> Worker:
        return Whole(super().worker(problem, seed))

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.fedasync import FedAsyncServer, constant, hinge, polynomial

        functions = {
            "constant": constant,
            "hinge": hinge(self.hinge_a, self.hinge_b),
            "polynomial": polynomial(self.staleness),
        }
        return FedAsyncServer(
            start.weights,
            start.trainable,
            mixing=self.mixing,
            staleness=functions[self.staleness_function],
            device=device,
            deterministic=self.deterministic,
        )
