"""Freed memory stays with its process, up to a limit.

The one idea: each piece of arrays lies in fresh memory until it is copied or added, and the system clears every page of fresh
memory. glibc gives large freed blocks back at once, so a receiver would pay for that clearing with every piece.
"""

from __future__ import annotations

import ctypes

KEPT = 64 << 20  # bytes at the end of a heap that stay with the process
LARGE = 32 << 20  # bytes of the largest block that comes from a heap: as many as glibc allows
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt(3)


def keep() -> bool:
    """Keep freed memory, in this process and those that it forks. Returns False if the C library cannot (macOS, musl)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(TRIM_THRESHOLD, KEPT)) and bool(mallopt(MMAP_THRESHOLD, LARGE))
