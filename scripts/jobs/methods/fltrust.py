"""FLTrust: FedAvg's rounds and clients, and a server with a little clean data of its own, by which it weighs the clients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from shoal.envs.datasets import Examples
from shoal.envs.population import Population
from shoal.envs.sources import examples_of
from shoal.jobs.methods.method import Start
from shoal.jobs.methods.robust import Unweighted
from shoal.jobs.problems import Problem, Supervised
from shoal.jobs.settings import option, ranges, shown
from shoal.protocol import draws
from shoal.protocol.errors import UserError, takes
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task

if TYPE_CHECKING:
    from shoal.aggregators.robust import Rule


@dataclass(frozen=True)
class FLTrust(Unweighted):
    """FLTrust (Cao et al. 2021): trust is the cosine of a client's delta with the delta of the server's own data."""

    name: ClassVar[str] = "fltrust"
    problems: ClassVar[tuple[str, ...]] = ("supervised",)

    root: str = option(
        "clients",
        "the server's own data: drawn from all clients' data, for experiments (clients), or a function () -> data set",
        choices=("clients",),
        own=True,
    )
    root_examples: int = option(
        100, "examples of the server's own data, drawn from all clients' data", least=1, of={"root": ("clients",)}
    )

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if isinstance(problem, Supervised) and problem.worker is not None:
            raise UserError("method=fltrust: its server trains on its own data as Shoal's clients do; leave worker= out")
        if callable(self.root):
            takes("root", self.root, "a function without arguments that returns a data set (x, y)")
            if self.root_examples != ranges(self)["root_examples"].default:
                raise UserError(
                    f"root_examples={self.root_examples}: has no effect beside root={shown(self.root)}; leave it out"
                )

    def rule(self, start: Start) -> Rule:
        from shoal.aggregators.fltrust import FLTrust

        return FLTrust(root=self._server_update(start))

    def _server_update(self, start: Start) -> Callable[[Bundle, int], Bundle]:
        """The function (weights, version) -> the delta of the server's own training. It trains as a client does, as client
        number `clients`. Its data is read when the first round ends."""
        made: list[Any] = []

        def update(weights: Bundle, version: int) -> Bundle:
            if not made:
                from shoal.actors.workers.local_sgd import LocalSGD

                worker = self.worker(start.problem, start.seed)
                assert isinstance(worker, LocalSGD)
                examples = self._root(start)
                made.append(replace(worker, population=Population(self.clients + 1, lambda client: examples)))
            with draws.kept_globals():
                delta = made[0].run(weights, self.clients, Task(version, 0, (self.clients,))).bundle
            assert isinstance(delta, Bundle)
            return delta

        return update

    def _root(self, start: Start) -> Examples:
        """The server's own data. Drawn data is uniform over all clients' examples, as in the paper's experiments."""
        if callable(self.root):
            with draws.globally(start.seed, "root"):
                return examples_of(self.root())
        assert isinstance(start.problem, Supervised)
        population = start.problem.population(self, start.seed)
        rng = np.random.Generator(np.random.Philox(draws.key(start.seed, "root")))
        if population.divides is not None:
            pool = population.divides
            return pool[rng.choice(len(pool), min(self.root_examples, len(pool)), replace=False)]
        sizes = population.sizes if population.sizes is not None else np.ones(population.clients)
        drawn = rng.choice(population.clients, self.root_examples, p=sizes / sizes.sum())
        picked = []
        for client, count in zip(*np.unique(drawn, return_counts=True), strict=True):
            its = population.examples(int(client))
            picked.append(its[rng.choice(len(its), min(int(count), len(its)), replace=False)])
        x, y = (np.concatenate([getattr(each, name) for each in picked]) for name in ("x", "y"))
        weights = [each.weight for each in picked]
        weight = np.concatenate([each for each in weights if each is not None]) if weights[0] is not None else None
        return Examples(x, y, weight, scale=picked[0].scale)
