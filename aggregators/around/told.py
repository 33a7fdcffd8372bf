"""An aggregator whose weights go to actors in few bytes, as changes since the version before.

The one idea: a version is the weights that actors hold. The other aggregator's own weights go on unrounded inside. The weights
that are published, evaluated, kept and exported are those that every actor holds after adding the same rounded change
(protocol/changes.py). So a run has the same bits whether its weights travel as changes, whole, or not at all.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from shoal.aggregators import Aggregator, State
from shoal.aggregators.around import Around
from shoal.aggregators.buffers import Weights
from shoal.protocol import draws
from shoal.protocol.changes import Changes
from shoal.protocol.compress import Coding
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.exact import squares
from shoal.protocol.grid import BLOCK, square
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Moved

OWN, STEPS = "own/", "told_steps"


class Told(Around):
    """An aggregator around another, whose weights w follow contributions as usual; `weights()` is h, which follows w:
    h += C(w - h) (EF21-P, Gruntkowska et al. 2023). Version 0 is w itself.

    A delta that a client made from h is added to w, so the part of w - h that is not told yet is kept, and told later. The log
    probabilities in a trajectory are of h, as V-trace and PPO's ratio ask for.

    Metrics: `change_bytes` and `weights_bytes`, the size of a version as a change and whole; `untold`, |w - h| / |w| over the
    float32 entries. Memory: three bundles (h twice, the difference) and a change, beside the other aggregator's own.
    """

    def __init__(self, aggregator: Aggregator, coding: Coding, *, seed: int = 0) -> None:
        super().__init__(aggregator)
        self.coding, self.seed = coding, seed
        start = aggregator.weights()
        self.changes = Changes(coding, start.layout)
        self.held = Weights(start, torch.device("cpu"))
        self.steps = 0
        self._change: Bundle | None = None

    def weights(self) -> Bundle:
        return self.held.bundle()

    def change(self) -> Bundle | None:
        """The change that the last step made to `weights()`; None before the first step, and after a restart."""
        return self._change

    def step(self) -> Moved:
        """Raises UserError if the codec cannot hold what changed."""
        moved = self.aggregator.step()
        wanted, held = self.aggregator.weights(), self.held.bundle()
        self.steps += 1
        rng = np.random.Generator(np.random.Philox(draws.key(self.seed, "tell", self.steps)))
        try:
            self._change = self.changes.tell(wanted, held, rng)
        except ProtocolError as wrong:
            raise UserError(f"compress_weights={self.coding.name}: version {self.steps} cannot be told: {wrong}") from None
        raw = self.held.spare()
        now = Bundle(held.layout, raw.numpy())
        self.changes.follow(held, [self._change.data], now)
        self.held.become(raw)
        whole = math.sqrt(squares(wanted, ("f4",)))
        told = {
            "change_bytes": float(self._change.data.nbytes),
            "weights_bytes": float(now.data.nbytes),
            "untold": _distance(wanted, now) / whole if whole else 0.0,
        }
        return Moved({**moved.metrics, **told})

    def state(self) -> State:
        weights = {f"{OWN}{name}": array for name, array in self.aggregator.weights().items()}
        return {**self.aggregator.state(), **weights, STEPS: np.array(self.steps, np.int64)}

    def load(self, weights: Bundle, state: State) -> None:
        own = Bundle.pack({name: state[f"{OWN}{name}"] for name in weights.layout.by_name}, weights.layout)
        self.aggregator.load(own, state)
        self.held.load(weights)
        self.steps, self._change = int(state[STEPS]), None


def _distance(a: Bundle, b: Bundle) -> float:
    """The norm |a - b| of the float32 entries, taken a block at a time, so that no third bundle is needed."""
    x, y = a.vector(), b.vector()
    parts = (slice(first, first + BLOCK) for first in range(0, x.size, BLOCK))
    with np.errstate(all="ignore"):  # squares of numbers above 1e19 overflow
        return math.sqrt(math.fsum(square(x[part] - y[part]) for part in parts))
