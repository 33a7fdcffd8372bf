"""Large buffers, used again.

The one idea: memory that is touched for the first time costs ten times a copy into it (the kernel clears it, page by page). So
a buffer comes back by itself when the last array over it is gone, and no user has to return it.
"""

from __future__ import annotations

import weakref
from collections import defaultdict

import numpy as np
import numpy.typing as npt

from shoal.protocol.layout import ALIGNMENT

KEPT = 2  # unused buffers kept of each size


class Buffers:
    """A stock of buffers. Any thread may take from it, and drop a buffer."""

    def __init__(self) -> None:
        self._free: defaultdict[int, list[npt.NDArray[np.uint8]]] = defaultdict(list)

    def has(self, nbytes: int) -> bool:
        """True if a buffer of this size is free: it takes no new memory."""
        return bool(self._free[nbytes])

    def take(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """A buffer, uint8 [nbytes], aligned to 64 bytes; it holds bytes of its last use."""
        free = self._free[nbytes]
        try:
            memory = free.pop()
        except IndexError:  # also when another thread took the last one meanwhile
            memory = np.empty(nbytes + ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        taken = np.frombuffer(memory.data[start : start + nbytes], np.uint8)  # views of `taken` keep it, not `memory`
        weakref.finalize(taken, self._back, memory, nbytes).atexit = False
        return taken

    def _back(self, memory: npt.NDArray[np.uint8], nbytes: int) -> None:
        if len(self._free[nbytes]) < KEPT:
            self._free[nbytes].append(memory)
