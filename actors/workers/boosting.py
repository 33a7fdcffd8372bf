"""The worker of bagged gradient boosting: one round of XGBoost on a client's own examples, on top of the ensemble."""

from __future__ import annotations

import numpy as np

from shoal.envs.datasets import Examples, widened
from shoal.envs.population import Population
from shoal.nets.trees import Floats, margins, read
from shoal.protocol import draws
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Work


class Boosting:
    """A worker whose task is a boosting round on a client's examples, with rows flattened to columns. The ensemble's sums are
    the base margin, so the new trees follow its gradient.

    num_class: number of classes, or 0 for regression with squared error. settings: XGBoost's own. Raises ValueError for a label
    that is no class.
    """

    def __init__(self, population: Population, num_class: int, max_depth: int, settings: dict[str, float], seed: int) -> None:
        self.population, self.num_class, self.max_depth, self.settings, self.seed = (
            population,
            num_class,
            max_depth,
            settings,
            seed,
        )

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        import xgboost

        examples = self.population.examples(client)
        x, y, classes = columns_of(examples), np.asarray(examples.y), max(1, self.num_class)
        if self.num_class and not (y.min() >= 0 and y.max() < self.num_class):
            raise ValueError(f"client {client} has label {y.max()}: num_class={self.num_class}; set num_class")
        base = margins(weights, x, classes)
        data = xgboost.DMatrix(x, label=y, weight=examples.weight, base_margin=base.ravel())
        how = (
            {"objective": "multi:softprob", "num_class": self.num_class}
            if self.num_class
            else {"objective": "reg:squarederror"}
        )
        place = draws.key(self.seed, "boost", *task.draws(client)) % 2**31
        fixed = {
            "max_depth": self.max_depth,
            "base_score": 0.0,
            "nthread": 1,
            "seed": place,
            "tree_method": "exact",
            "verbosity": 0,
        }
        booster = xgboost.train({**how, **self.settings, **fixed}, data, num_boost_round=1)
        trees = read(bytes(booster.save_raw("json")), self.max_depth)
        return Work(trees, float(len(y)), scores(base, y, self.num_class))


def columns_of(examples: Examples) -> Floats:
    """The rows of the examples, flattened to float32 [n, columns]."""
    wide = widened(np.asarray(examples.x), examples.scale)
    return np.ascontiguousarray(wide.reshape(len(wide), -1), np.float32)


def scores(
    margin: Floats, y: np.ndarray[tuple[int, ...], np.dtype[np.generic]], num_class: int
) -> dict[str, tuple[float, float]]:
    """Totals of the loss, cross entropy or squared error, and of accuracy."""
    rows, wide = float(len(y)), margin.astype(np.float64)
    if not num_class:
        return {"loss": (float(((wide[:, 0] - y.astype(np.float64)) ** 2).sum()), rows)}
    top = wide.max(1)
    log_sum = top + np.log(np.exp(wide - top[:, None]).sum(1))
    own = wide[np.arange(len(y)), y.astype(np.int64)]
    return {"loss": (float((log_sum - own).sum()), rows), "accuracy": (float((wide.argmax(1) == y).sum()), rows)}
