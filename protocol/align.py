"""The alignment of arrays in a run of bytes."""

from __future__ import annotations

ALIGNMENT = 64  # bytes: a cache line, so that every segment can be summed with aligned vector loads


def aligned(nbytes: int) -> int:
    """The least multiple of ALIGNMENT from `nbytes` on."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
