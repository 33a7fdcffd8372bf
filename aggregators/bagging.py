"""Bagged gradient boosting: each round's trees of all clients join the ensemble, each with its share of the step.

The one idea: the mean over clients of their trees' sums is a tree ensemble too, with leaves divided by the number of clients.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from shoal.aggregators import State
from shoal.nets.trees import check, no_trees
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.work import Contribution, Moved


class Bagging:
    """An ensemble that grows by the trees of each round's clients, in the order of the clients, whenever they came.

    layout: of the whole ensemble (nets/trees.py), with room for all rounds. columns: of the data.
    """

    linear: ClassVar[bool] = False  # trees are put side by side

    def __init__(self, layout: Layout, columns: int) -> None:
        self.now, self.columns = no_trees(layout), columns
        self.came: dict[tuple[int, ...], Bundle] = {}

    def weights(self) -> Bundle:
        return self.now

    def fold(self, contribution: Contribution) -> None:
        """Raises ProtocolError for trees that are none."""
        check(contribution.bundle, self.columns)
        self.came[contribution.task.clients] = contribution.bundle.copy()

    def step(self) -> Moved:
        """Metrics: trees, their number in the ensemble; clients, the number of clients of the round."""
        following, at = self.now.copy(), int(self.now["count"][0])
        for clients in sorted(self.came):
            trees = self.came[clients]
            many = len(trees["feature"])
            for name in ("feature", "value", "left"):
                following[name][at : at + many] = trees[name]
            leaves = trees["feature"] < 0
            following["value"][at : at + many][leaves] /= np.float32(len(self.came))
            at += many
        following["count"][...] = at
        metrics = {"trees": float(at), "clients": float(len(self.came))}
        self.now, self.came = following, {}
        return Moved(metrics)

    def state(self) -> State:
        return {}

    def load(self, weights: Bundle, state: State) -> None:
        """weights: an ensemble of at most as much room as this one's, as of a run that was given a later end."""
        self.now, self.came = no_trees(self.now.layout), {}
        for name in ("feature", "value", "left"):
            self.now[name][: len(weights[name])] = weights[name]
        self.now["count"][...] = weights["count"]
