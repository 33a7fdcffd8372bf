"""Plain sums by torch, for a process that has imported torch anyway.

The one idea: torch has one operation for total += weight * x, numpy has none. For a small vector, calling torch takes longer
than adding.
"""

from __future__ import annotations

from shoal.nets.flat import as_tensor
from shoal.protocol.grid import Adder, Floats

SMALL = 2**14  # elements


class TorchAdder(Adder):
    """An Adder that makes plain sums of large vectors in one pass over memory. A term's last bit may differ from numpy's."""

    def plain(self, total: Floats, x: Floats, weight: float) -> None:
        if weight == 1.0 or x.size < SMALL or x.dtype != total.dtype:
            super().plain(total, x, weight)
        else:
            as_tensor(total).add_(as_tensor(x), alpha=weight)
