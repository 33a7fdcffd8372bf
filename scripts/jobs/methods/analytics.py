"""Federated analytics: questions about the clients' data that are answered by sums, without a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from shoal.actors import Worker
from shoal.aggregators import Aggregator
from shoal.coordinator.deciding.bounds import Bounds, Goal
from shoal.coordinator.deciding.plans import Asked, Plan
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.jobs.methods.method import Method, Start, check_plain
from shoal.jobs.problems import Evaluate, Problem, Supervised
from shoal.jobs.settings import option
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Layout

if TYPE_CHECKING:
    from shoal.jobs.job import Job


@dataclass(frozen=True)
class Analytics(Method):
    """The sum, histogram or quantiles of all clients' numbers (Ramage & Mazzocchi 2020). The run's weights are the answer."""

    name: ClassVar[str] = "analytics"
    problems: ClassVar[tuple[str, ...]] = ("supervised",)
    end: ClassVar[str] = ""
    independent: ClassVar[bool] = True

    clients: int = option(100, "number of clients that the data is divided among", least=1)
    cohort: int = option(0, "number of clients that are asked, drawn anew for each version (0: all)", least=0)
    query: str = option(
        "sum",
        "question: number of rows and sum of each column (sum), numbers in each bin (histogram), percentiles (quantiles)",
        choices=("sum", "histogram", "quantiles"),
    )
    of: str = option("x", "array of the examples that is asked about; a row is flattened to columns", choices=("x", "y"))
    bins: int = option(10, "bins of the histogram from low to high", least=1, most=4096, of={"query": ("histogram",)})
    low: float = option(0.0, "lower end of the histogram; smaller numbers are in its first bin", of={"query": ("histogram",)})
    high: float = option(
        1.0, "upper end of the histogram; this and larger numbers are in its last bin", of={"query": ("histogram",)}
    )
    percentiles: tuple[int, ...] = option(
        (25, 50, 75), "percentiles from 0 to 100, whole numbers", of={"query": ("quantiles",)}
    )

    @property
    def exact(self) -> bool:
        return True

    def check(self, problem: Problem) -> None:
        if self.cohort > self.clients:
            raise UserError(f"cohort={self.cohort}: allowed is from 0 to clients={self.clients}")
        if not self.low < self.high:
            raise UserError(f"high={self.high:g}: must be above low={self.low:g}")
        if not self.percentiles or not all(0 <= percent <= 100 for percent in self.percentiles):
            said = ",".join(map(str, self.percentiles))
            raise UserError(f"percentiles={said}: allowed are whole numbers from 0 to 100; percentiles=25,50,75, say")
        if self.query == "quantiles" and self.cohort and self.cohort != self.clients:
            raise UserError(
                f"cohort={self.cohort}: quantiles take four versions, each of which must ask the same clients; cohort=0"
            )

    def fits(self, job: Job) -> None:
        check_plain(
            job,
            wrong="refuses or rounds what clients count, and answers would not be exact",
            norm="with method=analytics it would leave out large clients",
        )

    def goal(self) -> Goal:
        from shoal.aggregators.tallies import DIGITS

        return Goal(versions=DIGITS if self.query == "quantiles" else 1)

    def central(self, problem: Problem, seed: int, device: str) -> Evaluate | None:
        return None  # the weights are no model's

    def plan(self, asked: Asked, seed: int, sums: bool) -> Plan:
        return Rounds(self.clients, self.cohort, seed=seed, summed=sums, asked=asked)

    def bounds(self, sums: bool) -> Bounds:
        return Bounds(most=2 if sums else 32)

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.tallies import Tallies

        return Tallies(self.query, self._layout(start.problem, start.seed), self.percentiles, self.cohort or self.clients)

    def worker(self, problem: Problem, seed: int) -> Worker:
        from shoal.actors.workers.tallying import Tallying

        assert isinstance(problem, Supervised)
        return Tallying(problem.population(self, seed), self.query, self.of, self.low, self.high, self.bins)

    def _layout(self, problem: Problem, seed: int) -> Layout:
        from shoal.actors.workers.tallying import rows_of
        from shoal.aggregators.tallies import tally_layout

        assert isinstance(problem, Supervised)
        width = rows_of(getattr(problem.population(self, seed).examples(0), self.of)).shape[1]
        return tally_layout(self.query, width, self.bins, len(self.percentiles))
