"""Settings shared by all federated methods whose clients train the model on their own data.

The one idea: the clients' training is the same for all these methods; the methods differ in the server's step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from shoal.actors import Worker
from shoal.coordinator.deciding.plans import Asked
from shoal.coordinator.deciding.plans.attendance import Attendance
from shoal.jobs.columns import Column, column_of
from shoal.jobs.methods.attending import attendance_of, check_attending, check_enough, devices_of
from shoal.jobs.methods.method import Method
from shoal.jobs.playing import Environments
from shoal.jobs.problems import Problem, Supervised
from shoal.jobs.settings import option, ranges, shown
from shoal.nets.schedules import SCHEDULES, Schedule
from shoal.protocol.errors import UserError, takes

if TYPE_CHECKING:
    from shoal.actors.workers.local_sgd import LocalSGD

WEIGHTINGS = ("samples", "users")
ENGINES = ("auto", "loop", "batched", "graph")
OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "rmsprop", "adagrad")
"""The names of nets/updates.py, which needs torch."""


@dataclass(frozen=True)
class LocalTraining(Method):
    """A method with local training: settings of the clients, and of every server that averages their deltas."""

    problems: ClassVar[tuple[str, ...]] = ("supervised", "environments", "calls")

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
        "samples",
        "weight of a client's delta in the mean: its number of examples (samples), 1 (users), or by your function or list",
        choices=WEIGHTINGS,
        own=True,
        read=column_of,
    )
    server_lr: float = option(1.0, "learning rate of the server's step", above=0)
    deterministic: bool = option(
        True, "the weights have the same bits for any number of actors and any order in which contributions arrive"
    )
    engine: str = option(
        "auto",
        "how an actor trains the clients of a task: one after the other (loop), together (batched), on a GPU each as one CUDA "
        "graph (graph); auto: the loop, or with deterministic=false the faster of loop and batched",
        choices=ENGINES,
    )
    eval_every: int = option(10, "rounds between central evaluations (0: only one, at the run's end)", least=0)
    clock: str = option(
        "wall",
        "the time of a run: as it passes (wall), or as the clients' devices would take, however fast this machine is (virtual)",
        choices=("wall", "virtual"),
    )
    devices: str = option(
        "",
        "CSV file of the clients' devices, or a function client -> Device (empty: a task takes the time of its work)",
        own=True,
    )
    traces: str = option(
        "",
        "CSV file of the times at which clients can be asked, or a function client -> (start, end) pairs (empty: always)",
        own=True,
    )
    trace_period: float = option(0.0, "seconds after which the traces begin again (0: they do not)", least=0)
    task_memory: float = option(
        0.0, "MB of memory that a task takes; clients whose device has less are never asked (0: all are)", least=0
    )
    concurrency: int = option(
        0,
        "clients at work at one time in a virtual run (0: as many as a round asks; without rounds 100, or all if fewer)",
        least=0,
        of={"clock": ("virtual",)},
    )

    @property
    def exact(self) -> bool:
        return self.deterministic

    def due(self, version: int) -> bool:
        return version == self.rounds or (self.eval_every > 0 and version % self.eval_every == 0)

    def check(self, problem: Problem) -> None:
        check_made(self, "optimizer", "lr")
        check_attending(self)
        if isinstance(self.weighting, Column) and len(self.weighting.numbers) != self.clients:
            has = f"{len(self.weighting.numbers)} weights"
            raise UserError(f"weighting: has {has} for clients={self.clients}; give one weight for each client")
        if callable(self.weighting):
            takes("weighting", self.weighting, "a function (client, examples) -> weight", 0, None)
        if callable(self.lr_schedule):
            takes("lr_schedule", self.lr_schedule, "a function version -> factor of the learning rate", 0)
        if isinstance(problem, Environments) and self.engine not in ("auto", "loop"):
            raise UserError(
                f"engine={self.engine}: clients that act in environments are trained one after the other; engine=loop"
            )

    def worker(self, problem: Problem, seed: int) -> Worker:
        if (own := problem.own_worker(self, seed)) is not None:
            return own
        assert isinstance(problem, Supervised | Environments)
        kind, more = self.trainer(), {"squares": self.squares, **self.given(problem)}
        if isinstance(problem, Environments):
            more["kept_bytes"] = 0  # a client's data are new in each task
        parts = (problem.model, problem.population(self, seed), problem.loss_function())
        how = self.arguments(kind, lr_schedule=self.schedule(), metrics=problem.metrics, seed=seed, **more)
        if self.engine == "graph":
            from shoal.actors.workers.graphed import Graphed, graphs

            return Graphed(partial(graphs(kind), *parts, **how))
        made = kind(*parts, **how)
        if isinstance(problem, Environments):
            return problem.surrounded(made, seed)
        if self.engine != "batched":
            return made
        from shoal.actors.workers.batched import together

        return together(made)

    def given(self, problem: Problem) -> Mapping[str, Any]:
        """Further arguments of the clients' worker."""
        return {}

    def trainer(self) -> type[LocalSGD]:
        """The class of the clients' worker. It gets each setting of the method that it has an argument for."""
        from shoal.actors.workers.local_sgd import LocalSGD

        return LocalSGD

    @property
    def asks(self) -> int:
        """The number of clients that must be there at one time, for the run to go on."""
        return 1

    @property
    def at_once(self) -> int:
        """The number of clients at work at one time in a virtual run."""
        return self.concurrency or min(self.clients, 100)

    def attendance(self, asked: Asked) -> Attendance | None:
        """The clients that can be asked, and when; None: no setting speaks of that. Raises UserError if they never suffice."""
        if not (self.devices or self.traces or self.clock == "virtual"):
            return None
        if self.devices:
            devices_of(self)(0)
        found = attendance_of(self, asked.seconds)
        check_enough(self, found, self.asks)
        return found

    def passes(self, examples: float) -> float:
        """Return the number of examples that a task passes over, of a client with so many."""
        return float(self.local_steps * self.batch_size) if self.local_steps else self.local_epochs * examples

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
