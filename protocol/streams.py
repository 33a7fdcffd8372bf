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


def _constants(first: int, factor: int, many: int) -> tuple[Words, Words]:
    """Two constants of each of so many hashes: one for the bits of its number, and the factor of these, each [many, 1]."""
    found = [first]
    for _ in range(many):
        found.append(found[-1] * factor % 2**32)
    return np.array(found[:-1], np.uint32)[:, None], np.array(found[1:], np.uint32)[:, None]


def _apart(hashes: Words) -> Words:
    """The constants of the words' hashes into each other, [words, words, 1]: first index the word that is hashed. A word is not
    hashed into itself: there stands 0."""
    found = np.zeros((POOL, POOL, 1), np.uint32)
    found[~np.eye(POOL, dtype=bool)] = hashes
    return found


_TO, _BY = _constants(INIT_A, MULT_A, POOL + POOL * (POOL - 1))
_FIRST = _TO[:POOL], _BY[:POOL]
_MIXING = _apart(_TO[POOL:]), _apart(_BY[POOL:])
_LAST = _constants(INIT_B, MULT_B, POOL)


def _hashed(words: Words, to: Words, by: Words) -> Words:
    value = words ^ to
    value *= by
    value ^= value >> SHIFT
    return value


def keys_of(numbers: Sequence[int]) -> npt.NDArray[np.uint64]:
    """The key of np.random.Philox(number) for each of these numbers of at most 128 bits: uint64 [numbers, 2]."""
    raw = b"".join([number.to_bytes(4 * POOL, "little") for number in numbers])
    pool = _hashed(np.frombuffer(raw, "<u4").reshape(-1, POOL).T, *_FIRST)
    for source, to, by in zip(range(POOL), *_MIXING, strict=True):
        mixed = pool * MIX_L
        mixed -= MIX_R * _hashed(pool[source], to, by)
        mixed ^= mixed >> SHIFT
        mixed[source] = pool[source]
        pool = mixed
    state = np.ascontiguousarray(_hashed(pool, *_LAST).T, "<u4")
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
