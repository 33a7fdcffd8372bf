"""What a contribution's numbers must be before they touch the weights.

The one idea: one pass. The dot product of a vector with itself is finite only if every element is, and it is the norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from shoal.protocol.grid import GRID, square
from shoal.protocol.layout import Bundle
from shoal.protocol.messages import Contribute


@dataclass(frozen=True, slots=True)
class Checks:
    """norm: the largest L2 norm of a contribution's delta (0: any finite one). examples: the largest weight (0: any)."""

    norm: float = 0.0
    examples: float = 0.0

    def amiss(self, bundle: Bundle, message: Contribute) -> str:
        """Why it must not be folded in; "" if nothing is wrong with it."""
        if self.examples and message.weight > self.examples:
            return f"weight {message.weight:g} is above the cap of {self.examples:g}"
        if message.summed and not self.norm:
            return ""  # whole numbers; their range is the sum's own to check
        squares = _square_of_sum(bundle) if message.summed else _square(bundle)
        if not math.isfinite(squares):
            return "not finite (NaN or infinity) in its arrays"
        norm = math.sqrt(squares) / (message.weight if message.summed else 1.0)
        if self.norm and norm > self.norm:
            return f"norm {norm:g} is above the bound of {self.norm:g}"
        return ""


def _square(bundle: Bundle) -> float:
    return sum(square(x) for dtype in ("f4", "f8") for _, x in bundle.blocks(dtype))


def _square_of_sum(bundle: Bundle) -> float:
    """Of sum(weight * delta) in the exact form: whole multiples of the grid, always finite."""
    if "sum/f4" not in bundle:
        return 0.0
    return sum(square(x.astype(np.float64)) for _, x in bundle.blocks_of("sum/f4")) * GRID**2
