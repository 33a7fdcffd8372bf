"""Settings and checks shared by methods whose clients send more than a delta, or remember something from task to task.

The one idea: such a method brings its own clients and needs each client's contribution by itself. A job that takes one of these
away is refused when it is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from shoal.jobs.methods.fedavg import InRounds
from shoal.jobs.playing import Environments
from shoal.jobs.problems import Problem, Supervised
from shoal.jobs.settings import option, ranges, shown
from shoal.protocol.beside import with_beside
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Layout

if TYPE_CHECKING:
    from shoal.jobs.job import Job
    from shoal.nets.updates import Update

MB = 1 << 20


@dataclass(frozen=True)
class Apiece(InRounds):
    """A method in rounds whose clients are its own, and which looks at each client's contribution."""

    problems: ClassVar[tuple[str, ...]] = ("supervised", "environments")

    def update(self) -> Update:
        from shoal.nets.updates import SGD

        return SGD(self.server_lr)

    def trainable(self, problem: Problem) -> int:
        """The number of trained float32 entries, which lie first."""
        _, trainable = problem.first(0)
        assert trainable is not None  # a Supervised problem has a torch model
        return trainable

    def beside(self, problem: Problem) -> Mapping[str, int]:
        """The flat float32 arrays beside a client's delta: name -> number of entries."""
        return {}

    def down(self, problem: Problem) -> Mapping[str, int]:
        """The flat float32 arrays of a task's brief: name -> number of entries."""
        return {}

    def layouts(self, problem: Problem, weights: Layout) -> Sequence[Layout]:
        return [with_beside(weights, self.beside(problem))]

    def briefs(self, problem: Problem, weights: Layout) -> Sequence[Layout]:
        sizes = self.down(problem)
        return [Layout.of({name: ("f4", (size,)) for name, size in sizes.items()})] if sizes else ()

    def options(self, device: str) -> dict[str, Any]:
        """The settings of a FedAvgServer."""
        own = {"device": device, "deterministic": self.deterministic, "shares": self.cohort}
        return {**own, "update": self.update()}

    def check(self, problem: Problem) -> None:
        super().check(problem)
        own_clients(problem, f"method={self.name}")

    @property
    def more(self) -> bool:
        """True if a contribution holds more than a delta."""
        return type(self).beside is not Apiece.beside

    def fits(self, job: Job) -> None:
        own_numbers(job, f"method={self.name}", self.more)

    def plain_steps(self, why: str) -> None:
        """Raises UserError unless the clients make steps of plain SGD on their own loss."""
        for name, plain in {"optimizer": "sgd", "momentum": 0.0, "mu": 0.0}.items():
            if (given := getattr(self, name)) != plain:
                raise UserError(f"{name}={shown(given)}: {why}; {name}={plain}")

    def never_still(self, seed: int, why: str) -> None:
        """Raises UserError for a learning-rate schedule with a factor of 0."""
        factor = self.schedule()
        if (still := next((version for version in range(self.rounds) if not factor(version)), None)) is not None:
            raise UserError(f"lr_schedule={shown(self.lr_schedule)}: gave 0 for version {still}; {why}")


def own_clients(problem: Problem, which: str) -> None:
    """Raises UserError for workers of the user's. which: the setting that brings clients of its own, name=value."""
    worker = getattr(problem, "worker", None)
    if not isinstance(problem, Supervised | Environments) or worker is not None:
        raise UserError(
            f"worker={shown(worker)}: {which} trains the clients in a way of its own; leave worker= out, or {which} itself"
        )


NORMS = ("norm_bound", "norm_factor", "norm_quantile")


def as_they_are(job: Job, packed: str, norm: str = "") -> None:
    """Raises UserError if the job's checks or wraps stand in the way of contributions that must come as they are. packed: why
    they cannot be compressed. norm: why their norm cannot have a bound; "" if it can."""
    for wrap in job.around:
        if (codec := getattr(wrap, "compress", "none")) != "none":
            raise UserError(f"compress={codec}: {packed}; compress=none")
    for name, part in ((name, part) for part in (job.checks, *job.around) for name in NORMS):
        if norm and (bound := getattr(part, name, 0.0)):
            raise UserError(f"{name}={bound:g}: {norm}; {name}=0")


def own_numbers(job: Job, which: str, more: bool) -> None:
    """as_they_are, for clients whose numbers a method computes with. which: the setting that does so, name=value. more: True if
    a contribution holds more than a delta."""
    norm = f"{which} sends more than a delta, and the norm would be of both" if more else ""
    as_they_are(job, f"{which} needs a client's numbers as they are, not rounded", norm)


@dataclass(frozen=True)
class Stateful(Apiece):
    """A method that remembers something of each client."""

    state_memory: int = option(
        64,
        "MB of clients' states that the coordinator holds in memory and in each snapshot; others lie in files of the run",
        least=0,
    )

    def options(self, device: str) -> dict[str, Any]:
        return {**super().options(device), "clients": self.clients, "held": self.state_memory * MB}


ALIKE = "weight of a client's delta in the mean: 1 for each client, as in the paper"


def alike() -> Any:
    """The setting `weighting` of a method whose formulas average clients alike."""
    return option("users", ALIKE, choices=("users",))


def unused(name: str, of: type[Any]) -> Any:
    """A setting of `of` that this method has no use for: it keeps its default."""
    found = ranges(of)[name]
    return option(found.default, found.about, least=found.default, most=found.default)
