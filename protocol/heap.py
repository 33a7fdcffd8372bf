"""What a process does with memory that it has freed: keep some of it.

The one idea: a piece of arrays lies in fresh memory for a moment and is freed again, and the system clears every page of what
it is asked for. glibc gives large blocks back at once, so a receiver pays for that clearing with every piece; it need not.
"""

from __future__ import annotations

import ctypes

KEPT = 64 << 20  # bytes at the end of a heap that stay with the process
LARGE = 32 << 20  # bytes of a block that still comes from a heap: as many as glibc allows
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt(3)


def keep() -> bool:
    """For this process and those that it forks. False where the C library has no such choice (macOS, musl)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(TRIM_THRESHOLD, KEPT)) and bool(mallopt(MMAP_THRESHOLD, LARGE))
