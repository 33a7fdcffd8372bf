"""Gradient-boosted trees by bagging: XGBoost on the clients, one ensemble of all their trees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from shoal.actors import Worker
from shoal.aggregators import Aggregator
from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.plans import Asked, Plan
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.jobs.methods.method import Method, Start, check_plain
from shoal.jobs.problems import Evaluate, Problem, Supervised
from shoal.jobs.settings import option
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.work import Metrics

if TYPE_CHECKING:
    from shoal.jobs.job import Job


@dataclass(frozen=True)
class XGBBagging(Method):
    """Bagged gradient boosting (Chen & Guestrin 2016; Flower's FedXgbBagging): in a round, each client boosts the ensemble by
    one tree for each class, and the ensemble takes all of them, each leaf divided by the number of clients. The job's model and
    loss are not used."""

    name: ClassVar[str] = "xgb_bagging"
    problems: ClassVar[tuple[str, ...]] = ("supervised",)
    independent: ClassVar[bool] = True

    rounds: int = option(20, "rounds, each of which adds one tree for each class and client", least=1)
    clients: int = option(10, "number of clients that the training data is divided among", least=1)
    cohort: int = option(0, "number of clients that boost in one round (0: all)", least=0)
    num_class: int = option(
        0,
        "number of classes (0: one more than the largest label of client 0 and the held-out data; regression without classes)",
        least=0,
    )
    eta: float = option(0.3, "learning rate: factor of each round's trees", above=0, most=1)
    max_depth: int = option(4, "largest depth of a tree", least=1, most=12)
    reg_lambda: float = option(1.0, "weight of the L2 penalty on leaves", least=0)
    min_child_weight: float = option(1.0, "least sum of second derivatives in a leaf", least=0)
    subsample: float = option(1.0, "share of a client's examples that a tree is grown from", above=0, most=1)
    eval_every: int = option(1, "rounds between central evaluations (0: only one, at the run's end)", least=0)

    def check(self, problem: Problem) -> None:
        if self.cohort > self.clients:
            raise UserError(f"cohort={self.cohort}: allowed is from 0 to clients={self.clients}")

    def fits(self, job: Job) -> None:
        check_plain(
            job,
            wrong="takes contributions for changes of weights, which trees are not",
            norm="trees have no norm that means anything",
        )

    def try_out(self, seed: int) -> None:
        try:
            import xgboost  # noqa: F401
        except ModuleNotFoundError:
            raise UserError("method=xgb_bagging needs xgboost, which is not installed: pip install 'shoal[trees]'") from None

    def due(self, version: int) -> bool:
        return version == self.rounds or (self.eval_every > 0 and version % self.eval_every == 0)

    def plan(self, asked: Asked, seed: int, sums: bool) -> Plan:
        return Rounds(self.clients, self.cohort, seed=seed, asked=asked)

    def bounds(self, sums: bool) -> Bounds:
        return Bounds(most=32)

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.actors.workers.boosting import columns_of
        from shoal.aggregators.bagging import Bagging
        from shoal.nets.trees import layout_of_trees

        problem = start.problem
        assert isinstance(problem, Supervised)
        each = max(1, self._classes(problem, start.seed))
        room = self.rounds * (self.cohort or self.clients) * each
        columns = columns_of(problem.population(self, start.seed).examples(0)).shape[1]
        return Bagging(layout_of_trees(room, self.max_depth), columns)

    def layouts(self, problem: Problem, weights: Layout) -> list[Layout]:
        from shoal.nets.trees import layout_of_trees

        room = weights.by_name["feature"].shape[0]
        return [layout_of_trees(room // (self.rounds * (self.cohort or self.clients)), self.max_depth)]

    def worker(self, problem: Problem, seed: int) -> Worker:
        from shoal.actors.workers.boosting import Boosting

        assert isinstance(problem, Supervised)
        names = ("eta", "reg_lambda", "min_child_weight", "subsample")
        settings = {name: float(getattr(self, name)) for name in names}
        return Boosting(problem.population(self, seed), self._classes(problem, seed), self.max_depth, settings, seed)

    def central(self, problem: Problem, seed: int, device: str) -> Evaluate | None:
        from shoal.actors.workers.boosting import columns_of, scores
        from shoal.nets.trees import margins

        assert isinstance(problem, Supervised)
        held_out, classes = problem.population(self, seed).held_out, self._classes(problem, seed)
        if held_out is None:
            return None
        x, y = columns_of(held_out), np.asarray(held_out.y)

        def evaluate(weights: Bundle) -> Metrics:
            found = scores(margins(weights, x, max(1, classes)), y, classes)
            named = {"loss": "held_out_loss"}
            return {
                **{named.get(name, name): total / count for name, (total, count) in found.items()},
                "held_out_examples": float(len(y)),
            }

        return evaluate

    def _classes(self, problem: Supervised, seed: int) -> int:
        """The number of classes; 0 for regression."""
        if self.num_class:
            return self.num_class
        population = problem.population(self, seed)
        seen = [np.asarray(each.y) for each in (population.examples(0), population.held_out) if each is not None and len(each)]
        if any(labels.dtype.kind not in "biu" for labels in seen):
            return 0
        return 1 + max(int(labels.max()) for labels in seen)
