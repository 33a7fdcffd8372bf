"""Random generators of numpy's, keyed one after the other without the cost of making each.

The one idea: np.random.Philox(number) spends most of its time on spreading the number over its key. For many numbers that is
one calculation over arrays, and one generator then takes one key after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

POOL = 4  # 32-bit words of a number, and of the pool that they are mixed into
INIT_A, MULT_A = 0x43B0D7E5, 0x931E8875  # the constants of numpy's SeedSequence, after O'Neill's randutils::seed_seq_fe
INIT_B, MULT_B = 0x8B51F9DD, 0x58F38DED
MIX_L, MIX_R = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
SHIFT = np.uint32(16)


def keys_of(numbers: Sequence[int]) -> npt.NDArray[np.uint64]:
    """The key of np.random.Philox(number) for each of these numbers of at most 128 bits: uint64 [numbers, 2]."""
    raw = b"".join(number.to_bytes(4 * POOL, "little") for number in numbers)
    words = np.frombuffer(raw, "<u4").reshape(-1, POOL).astype(np.uint32)
    constant = INIT_A

    def hashed(value: Words) -> Words:
        nonlocal constant
        value = value ^ np.uint32(constant)
        constant = constant * MULT_A % 2**32
        value *= np.uint32(constant)
        value ^= value >> SHIFT
        return value

    pool = [hashed(words[:, at]) for at in range(POOL)]
    for source in range(POOL):
        for into in range(POOL):
            if source != into:
                mixed = MIX_L * pool[into] - MIX_R * hashed(pool[source])
                pool[into] = mixed ^ mixed >> SHIFT
    state = np.empty((len(numbers), POOL), "<u4")
    constant = INIT_B
    for at in range(POOL):
        value = pool[at] ^ np.uint32(constant)
        constant = constant * MULT_B % 2**32
        value *= np.uint32(constant)
        state[:, at] = value ^ value >> SHIFT
    return state.view("<u8").astype(np.uint64)


class Streams:
    """One generator that begins the streams of many numbers, one after the other."""

    def __init__(self) -> None:
        self._bits = np.random.Philox(0)
        self._generator = np.random.Generator(self._bits)
        self._begin = self._bits.state
        self._state: Any = self._begin["state"]
        numbers = (0, 1, 2**128 - 1)
        theirs = [np.random.Philox(number).state["state"]["key"] for number in numbers]
        self._spreads = bool(np.array_equal(keys_of(numbers), theirs))  # else numpy spreads numbers in a way of its own

    def keys(self, numbers: Sequence[int]) -> npt.NDArray[np.uint64]:
        """The keys of these numbers, uint64 [numbers, 2], for `begin`."""
        if self._spreads:
            return keys_of(numbers)
        return np.array([np.random.Philox(number).state["state"]["key"] for number in numbers], np.uint64).reshape(-1, 2)

    def begin(self, key: npt.NDArray[np.uint64]) -> np.random.Generator:
        """The generator at the start of a key's stream: the draws of np.random.Generator(np.random.Philox(number)). The stream
        that was begun before is over."""
        self._state["key"] = key
        self._bits.state = self._begin
        return self._generator
