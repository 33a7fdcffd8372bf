"""Facts about freed memory that stays with its process."""

from __future__ import annotations

import subprocess
import sys

import pytest

PIECES = """
import resource
from shoal.protocol import heap
kept = heap.keep()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for times in range(51):
    before = before if times > 1 else faults()  # the first time is for what nobody had yet
    pieces = [bytearray(b"x") * (1 << 21) for _ in range(4)]
    del pieces
print(int(kept), faults() - before)
"""


def test_pieces_of_arrays_lie_where_the_last_ones_lay() -> None:
    told = subprocess.run([sys.executable, "-c", PIECES], stdout=subprocess.PIPE, text=True, check=True).stdout
    kept, faults = map(int, told.split())
    if not kept:
        pytest.skip("this C library has no choice")
    assert faults < 512  # as many pages as one piece has
