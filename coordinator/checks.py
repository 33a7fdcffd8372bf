"""What a contribution's numbers must be before they touch the weights.

The one idea: one pass. The dot product of a vector with itself is finite only if every element is finite, and its root is the
norm, which is handed on to the other readers of the norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from shoal.protocol.exact import squares
from shoal.protocol.grid import GRID, square
from shoal.protocol.layout import Bundle
from shoal.protocol.messages import Contribute


@dataclass(frozen=True, slots=True)
class Inspector:
    """The check of a contribution. norm: the largest L2 norm of a delta (0: any finite norm). examples: the largest weight of a
    contribution, in examples (0: any)."""

    norm: float = 0.0
    examples: float = 0.0

    def look(self, bundle: Bundle, message: Contribute) -> tuple[str, float | None]:
        """Why the contribution must not be folded in, or ""; and its norm, for Contribution.norm: it is computed only once.

        The norm is None for a summed contribution: its sums are whole numbers, and the sum checks their range.
        """
        if self.examples and message.weight > self.examples:
            return f"weight {message.weight:g} is above the cap of {self.examples:g}", None
        if message.summed and not self.norm:
            return "", None
        norm = math.sqrt(_square_of_sum(bundle)) / message.weight if message.summed else math.sqrt(squares(bundle))
        if not math.isfinite(norm):
            return "not finite (NaN or infinity) in its arrays", None
        if self.norm and norm > self.norm:
            return f"norm {norm:g} is above the bound of {self.norm:g}", None
        return "", None if message.summed else norm


def _square_of_sum(bundle: Bundle) -> float:
    """The squared norm of the float32 entries of sum(weight * delta). In the exact form the entries are whole multiples of the
    grid, always finite."""
    place = bundle.layout.by_name.get("sum/f4")
    if place is None:
        return 0.0
    unit = GRID if place.dtype == "i8" else 1.0
    return sum(square(x.astype(np.float64)) for _, x in bundle.blocks_of("sum/f4")) * unit**2
