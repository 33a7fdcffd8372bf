"""Priorities of places in a replay: how often each is drawn, and what its losses weigh.

The one idea: places are drawn more often the larger their last error was, and weights undo what that does to the mean.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shoal.aggregators import State
from shoal.aggregators.sum_tree import Doubles, Places, SumTree


class Priorities:
    """Priorities of the places of a ring: proportional prioritisation (Schaul et al. 2016, section 3.3 and 3.4).

    The probability of a place is p^alpha / sum of p^alpha, with p = |error| + eps. Each draw of N takes one place from each of
    N equal parts of the sum (appendix B.2.1). A new place has the largest priority so far, 1 at first.
    """

    def __init__(self, size: int, alpha: float = 0.6, eps: float = 1e-6) -> None:
        self.tree, self.alpha, self.eps = SumTree(size), alpha, eps
        self.largest = 1.0  # the largest p^alpha so far

    def of(self, errors: npt.NDArray[np.floating]) -> Doubles:
        """p^alpha of errors."""
        powered: Doubles = (np.abs(errors.astype(np.float64)) + self.eps) ** self.alpha
        return powered

    def put(self, places: Places, errors: npt.NDArray[np.floating]) -> None:
        """Set the priorities of places [N] from their errors [N]."""
        numbers = self.of(errors)
        self.largest = max(self.largest, float(numbers.max(initial=0.0)))
        self.tree.put(places, numbers)

    def draw(self, rng: np.random.Generator, n: int) -> Places:
        return self.tree.find((np.arange(n) + rng.random(n)) * (self.tree.total / n))

    def weights(self, places: Places, held: int, beta: float) -> npt.NDArray[np.float32]:
        """Importance weights (1 / held / P)^beta, divided by the largest of them. held: places that can be drawn."""
        scaled = (self.tree.leaves[places] * (held / self.tree.total)) ** -beta
        found: npt.NDArray[np.float32] = (scaled / scaled.max()).astype(np.float32)
        return found

    def state(self, places: Places) -> State:
        """The arrays for a snapshot that holds the rows at these places, oldest first."""
        return {"replay/largest": np.array([self.largest]), "replay/priorities": self.tree.leaves[places]}

    def load(self, state: State, places: Places, drawable: Places) -> None:
        """Go on from a snapshot's arrays. places: of the rows that are here now, oldest first. drawable: those to draw from."""
        self.tree.put(np.arange(self.tree.size), 0.0)
        if "replay/priorities" not in state:  # the run drew uniformly so far
            self.tree.put(drawable, self.largest)
            return
        self.largest = float(state["replay/largest"][0])
        numbers = state["replay/priorities"]
        many = min(len(numbers), len(places))
        self.tree.put(places[len(places) - many :], numbers[len(numbers) - many :])
