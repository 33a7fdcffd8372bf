"""A tree of sums over non-negative numbers, from which places are drawn in proportion to their numbers.

The one idea: each level holds the sums of blocks of 16 entries of the level below, and a sum is always computed anew from its
block. So the tree is a function of its leaves alone: no rounding error adds up, and a snapshot needs only the leaves.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
WIDE = 16  # entries of a block: a level costs a handful of numpy calls, so few wide levels beat many narrow ones


class SumTree:
    """The sums of `size` numbers from 0, all 0 at first. Memory: 8.6 bytes a number."""

    def __init__(self, size: int) -> None:
        """Raises ValueError for size below 1."""
        if size < 1:
            raise ValueError(f"size={size}: must be at least 1")
        self.size = size
        self.levels: list[Doubles] = []  # [blocks, 16] each, the leaves first, the last of one block
        while not self.levels or len(self.levels[-1]) > 1:
            entries = len(self.levels[-1]) if self.levels else size
            self.levels.append(np.zeros((-(-entries // WIDE), WIDE)))

    @property
    def leaves(self) -> Doubles:
        """The numbers, float64 [size], as a view that is not to be changed."""
        return self.levels[0].reshape(-1)[: self.size]

    @property
    def total(self) -> float:
        return float(self.levels[-1].sum())

    def put(self, places: Places, numbers: Doubles | float) -> None:
        """Set the numbers at places [n] to numbers [n], or to one number. Of equal places the last one counts."""
        self.levels[0].reshape(-1)[places] = numbers
        for below, level in zip(self.levels, self.levels[1:], strict=False):
            places = places // WIDE
            if len(places) > 1:  # neighbours have one parent; others that are named twice get the same sum twice
                places = places[np.append(True, places[1:] != places[:-1])]
            level.reshape(-1)[places] = below[places].sum(axis=1)

    def find(self, marks: Doubles) -> Places:
        """The places at which the running sum of the numbers first exceeds marks, [n] each. A number of 0 is never found.

        marks: from 0 to below `total`; a mark that rounding has put beyond finds the last number above 0. The total must be
        above 0.
        """
        at = np.zeros(len(marks), np.int64)
        left = np.array(marks, np.float64)
        each = np.arange(len(marks))
        for level in reversed(self.levels):
            block = level[at]
            sums = block.cumsum(axis=1)
            entry = (sums <= left[:, None]).sum(axis=1)
            if (beyond := entry == WIDE).any():
                entry[beyond] = WIDE - 1 - (block[beyond, ::-1] > 0).argmax(axis=1)
            left -= np.where(entry > 0, sums[each, entry - 1], 0.0)
            at = at * WIDE + entry
        return at
