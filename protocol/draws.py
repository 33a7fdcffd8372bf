"""Randomness as an argument.

The one idea: a draw is a function of (seed, purpose, numbers), never of earlier draws. So a run is the same for 1, 2 or 8
actors, and a million clients cost an index, not a million generators.
"""

from __future__ import annotations

import hashlib
import random
import struct


def key(seed: int, purpose: str, *numbers: int) -> int:
    """A 128-bit number for (seed, purpose, numbers), e.g. key(0, "shuffle", client, version). purpose: 16 bytes at most, else
    ValueError."""
    packed = struct.pack(f"<{1 + len(numbers)}q", seed, *numbers)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=16, person=purpose.encode()).digest(), "little")


def draw(seed: int, purpose: str, *numbers: int) -> random.Random:
    """A separate generator for (seed, purpose, numbers). For numpy: np.random.Generator(np.random.Philox(key(...)))."""
    return random.Random(key(seed, purpose, *numbers))
