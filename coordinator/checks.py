"""Checks of a contribution's numbers before they touch the weights.

The one idea: one pass. The dot product of a vector with itself is finite only if every element is finite, and its root is the
norm, which is handed on to the other readers of the norm.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from shoal.protocol.exact import squares, unfinite
from shoal.protocol.grid import GRID, square
from shoal.protocol.layout import Bundle
from shoal.protocol.messages import Contribute

RECENT, LEAST = 101, 10  # accepted contributions of earlier versions that a median is over, and without which there is no bound


@dataclass(slots=True)
class Usual:
    """The usual size of a quantity of contributions, and the bound that follows: `factor` times the median of those accepted
    in earlier versions, so that the order in which a version's contributions come decides nothing."""

    factor: float
    bound: float = math.inf
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def take(self, size: float) -> None:
        self.recent.append(size)

    def step(self) -> None:
        usual = median(self.recent) if len(self.recent) >= LEAST else 0.0
        self.bound = self.factor * usual if usual > 0 else math.inf


class Inspector:
    """The check of a contribution. norm: the largest L2 norm of a delta (0: any finite norm). examples: the largest weight of a
    contribution, in examples (0: any). factor: in place of each of these that is 0, this many times the median of contributions
    accepted in earlier versions of this life, for each client of a task (0: no such bound)."""

    def __init__(self, norm: float = 0.0, examples: float = 0.0, factor: float = 0.0) -> None:
        self.norm, self.examples = norm, examples
        self._norms = Usual(factor) if factor and not norm else None
        self._weights = Usual(factor) if factor and not examples else None
        self._seen = (0.0, 0.0)  # norm, and weight of a client, of the contribution that was looked at last

    def taken(self) -> None:
        """Count the contribution that was looked at last: it is folded in."""
        norm, weight = self._seen
        if self._norms:
            self._norms.take(norm)
        if self._weights:
            self._weights.take(weight)

    def step(self) -> None:
        """Set the bounds for the next version's contributions."""
        for usual in (self._norms, self._weights):
            if usual:
                usual.step()

    def look(self, bundle: Bundle, message: Contribute, clients: int = 1) -> tuple[str, float | None]:
        """Return why the contribution must not be folded in, or ""; and its norm, for Contribution.norm: computed only once.

        The norm is None for a summed contribution: its sums are whole numbers, and the sum checks their range.
        """
        if self.examples and message.weight > self.examples:
            return f"weight {message.weight:g} is above the cap of {self.examples:g}", None
        each = message.weight / max(1, clients)
        if self._weights and each > self._weights.bound:
            return f"weight {each:g} of a client is above {self._weights.factor:g} times the median: set max_examples", None
        if message.summed and not self.norm and not self._norms:
            return "", None
        norm = math.sqrt(_square_of_sum(bundle)) / message.weight if message.summed else math.sqrt(squares(bundle))
        if not math.isfinite(norm):
            name = unfinite(bundle)
            return (
                f"not finite: {name!a} holds NaN or an infinity" if name else "too large: its squared norm has no number",
                None,
            )
        if self.norm and norm > self.norm:
            return f"norm {norm:g} is above the bound of {self.norm:g}", None
        if self._norms and norm > self._norms.bound:
            return f"norm {norm:g} is above {self._norms.factor:g} times the median: set norm_bound", None
        self._seen = (norm, each)
        return "", None if message.summed else norm


def _square_of_sum(bundle: Bundle) -> float:
    """The squared norm of the float32 entries of sum(weight * delta). In the exact form the entries are whole multiples of the
    grid, always finite."""
    place = bundle.layout.by_name.get("sum/f4")
    if place is None:
        return 0.0
    unit = GRID if place.dtype == "i8" else 1.0
    return sum(square(x.astype(np.float64)) for _, x in bundle.blocks_of("sum/f4")) * unit**2
