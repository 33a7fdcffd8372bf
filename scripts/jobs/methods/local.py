"""Settings shared by all federated methods whose clients train the model on their own data.

The one idea: the clients' training is the same for all these methods; the methods differ in the server's step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from shoal.actors import Worker
from shoal.jobs.methods.method import Method
from shoal.jobs.problems import Problem, Supervised
from shoal.jobs.settings import option, ranges, shown
from shoal.nets.schedules import SCHEDULES, Schedule
from shoal.protocol.errors import UserError, takes

if TYPE_CHECKING:
    from shoal.actors.workers.local_sgd import LocalSGD

WEIGHTINGS = ("samples", "users")
OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "rmsprop", "adagrad")
"""The names of nets/updates.py, which needs torch."""


@dataclass(frozen=True)
class LocalTraining(Method):
    """A method with local training: settings of the clients, and of every server that averages their deltas."""

    problems: ClassVar[tuple[str, ...]] = ("supervised", "calls")

    rounds: int = option(100, "versions of the weights after which the run is done", least=1)
    clients: int = option(100, "number of clients that the training data is divided among", least=1)
    local_epochs: int = option(5, "passes over a client's data in one task", least=1)
    local_steps: int = option(
        0, "optimizer steps of a client in one task, in place of local_epochs (0: as many as local_epochs take)", least=0
    )
    batch_size: int = option(10, "examples in one optimizer step of a client", least=1)
    drop_last: bool = option(False, "a client leaves out the last batch of a pass if it is smaller than batch_size")
    optimizer: str = option("sgd", "optimizer of the clients, whose state is new in each task", choices=OPTIMIZERS, own=True)
    lr: float = option(0.1, "learning rate of the clients' optimizer", above=0)
    momentum: float = option(
        0.0, "momentum of the clients' optimizer", least=0, below=1, of={"optimizer": ("sgd", "momentum", "rmsprop")}
    )
    weight_decay: float = option(0.0, "weight decay of the clients' optimizer (0: none)", least=0)
    lr_schedule: str = option("constant", "how the clients' learning rate changes by round", choices=tuple(SCHEDULES), own=True)
    clip_grad_norm: float = option(
        0.0, "largest L2 norm of a client's gradient; a longer one is scaled down to it (0: any)", least=0
    )
    mu: float = option(0.0, "weight of FedProx's proximal term in a client's loss (0: no such term)", least=0)
    weighting: str = option(
        "samples", "weight of a client's delta in the mean: its number of examples (samples), or 1 (users)", choices=WEIGHTINGS
    )
    server_lr: float = option(1.0, "learning rate of the server's step", above=0)
    deterministic: bool = option(
        True, "the weights have the same bits for any number of actors and any order in which contributions arrive"
    )
    eval_every: int = option(10, "rounds between central evaluations (0: only one, at the run's end)", least=0)

    @property
    def exact(self) -> bool:
        return self.deterministic

    def due(self, version: int) -> bool:
        return version == self.rounds or (self.eval_every > 0 and version % self.eval_every == 0)

    def check(self, problem: Problem) -> None:
        check_made(self, "optimizer", "lr")
        if callable(self.lr_schedule):
            takes("lr_schedule", self.lr_schedule, "a function version -> factor of the learning rate", 0)

    def worker(self, problem: Problem, seed: int) -> Worker:
        if (own := problem.own_worker(self, seed)) is not None:
            return own
        assert isinstance(problem, Supervised)
        kind = self.trainer()
        return kind(
            problem.model,
            problem.population(self, seed),
            problem.loss_function(),
            **self.arguments(kind, lr_schedule=self.schedule(), metrics=problem.metrics, seed=seed, squares=self.squares),
        )

    def trainer(self) -> type[LocalSGD]:
        """The class of the clients' worker. It gets each setting of the method that it has an argument for."""
        from shoal.actors.workers.local_sgd import LocalSGD

        return LocalSGD

    @property
    def squares(self) -> bool:
        """True if clients also tell the sum of the squares of their losses, which a selection needs."""
        return False

    def schedule(self) -> Schedule:
        """Version -> factor of the clients' learning rate."""
        if callable(self.lr_schedule):
            return self.lr_schedule
        factor = SCHEDULES[self.lr_schedule]
        return lambda version: factor(version, self.rounds)


def check_made(settings: Method, optimizer: str, lr: str) -> None:
    """Raises UserError for a learning rate beside an optimizer object, which was made with a learning rate of its own."""
    given, rate = getattr(settings, optimizer), getattr(settings, lr)
    if not isinstance(given, str | type) and rate != ranges(settings)[lr].default:
        raise UserError(f"{lr}={rate:g}: {optimizer}={shown(given)} was made with its own learning rate; give {rate:g} there")
