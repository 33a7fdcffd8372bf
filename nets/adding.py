"""Plain sums by torch, where it is there anyway.

The one idea: numpy has no operation for total += weight * x, torch has one. For a small vector torch takes longer to be
called than to add.
"""

from __future__ import annotations

from shoal.nets.flat import as_tensor
from shoal.protocol.grid import Adder, Floats

SMALL = 2**14  # elements


class TorchAdder(Adder):
    """As numpy's, with plain sums of large vectors in one pass over memory. The last bit of a term may differ from numpy's."""

    def plain(self, total: Floats, x: Floats, weight: float) -> None:
        if weight == 1.0 or x.size < SMALL or x.dtype != total.dtype:
            super().plain(total, x, weight)
        else:
            as_tensor(total).add_(as_tensor(x), alpha=weight)
