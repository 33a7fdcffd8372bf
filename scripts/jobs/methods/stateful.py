"""Settings and checks shared by methods whose clients send more than a delta, or remember something from task to task.

The one idea: such a method brings its own clients and needs each client's contribution by itself. A job that takes one of these
away is refused when it is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from shoal.jobs.methods.fedavg import InRounds
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

    problems: ClassVar[tuple[str, ...]] = ("supervised",)

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
        if isinstance(problem, Supervised) and problem.worker is not None:
            why = f"method={self.name} trains the clients in a way of its own"
            raise UserError(f"worker={shown(problem.worker)}: {why}; leave worker= out, or take method=fedavg")

    def fits(self, job: Job) -> None:
        for wrap in job.around:
            if getattr(wrap, "compress", "none") != "none":
                why = f"method={self.name} needs each client's numbers as they are, and a codec would round what it remembers"
                raise UserError(f"compress={wrap.compress}: {why}; compress=none")
            if getattr(wrap, "norm_factor", 0) and self.beside(job.problem):
                raise UserError(f"norm_factor={wrap.norm_factor:g}: {self._both()}; norm_factor=0")
        if (bound := getattr(job.checks, "norm_bound", 0.0)) and self.beside(job.problem):
            raise UserError(f"norm_bound={bound:g}: {self._both()}; norm_bound=0")

    def _both(self) -> str:
        return f"a contribution of method={self.name} holds more than a delta, and its norm is that of both"

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
