"""Federated methods whose clients train the model on their own data: the settings that all of them share.

The one idea: what a client does is one thing, what the server does with it another; methods differ in the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from shoal.jobs.methods.method import Method
from shoal.jobs.problems import Problem, Supervised
from shoal.jobs.settings import option

if TYPE_CHECKING:
    from shoal.actors import Worker

WEIGHTINGS = ("samples", "users")


@dataclass(frozen=True)
class LocalTraining(Method):
    """Settings of the clients, and of every server that averages what they send."""

    problems: ClassVar[tuple[str, ...]] = ("supervised", "calls")

    rounds: int = option(100, "versions of the weights that the run makes", least=1)
    clients: int = option(100, "number of clients", least=1)
    local_epochs: int = option(5, "passes over a client's data in one task", least=1)
    batch_size: int = option(10, "examples in one step of a client", least=1)
    lr: float = option(0.1, "learning rate of the clients' SGD", above=0)
    momentum: float = option(0.0, "momentum of the clients' SGD", least=0, below=1)
    mu: float = option(0.0, "weight of FedProx's proximal term in a client's loss (0: none)", least=0)
    weighting: str = option("samples", "what a client counts by: its number of samples, or 1", choices=WEIGHTINGS)
    server_lr: float = option(1.0, "learning rate of the server's step", above=0)
    deterministic: bool = option(True, "the same bits for any number of actors and any order of arrival")
    eval_every: int = option(10, "rounds between central evaluations (0: only at the end)", least=0)

    @property
    def exact(self) -> bool:
        return self.deterministic

    def due(self, version: int) -> bool:
        return version == self.rounds or (self.eval_every > 0 and version % self.eval_every == 0)

    def worker(self, problem: Problem, seed: int) -> Worker:
        if (own := problem.own_worker(self, seed)) is not None:
            return own
        from shoal.actors.workers.local_sgd import LocalSGD

        assert isinstance(problem, Supervised)
        return LocalSGD(
            problem.model,
            problem.population(self, seed),
            problem.loss_function(),
            local_epochs=self.local_epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            momentum=self.momentum,
            mu=self.mu,
            weighting=self.weighting,
            seed=seed,
        )
