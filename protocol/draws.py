"""Randomness as an argument.

The one idea: a draw is a function of (seed, purpose, numbers), never of earlier draws. So a run is the same for 1, 2 or 8
actors, and a million clients cost an index, not a million generators.
"""

from __future__ import annotations

import hashlib
import os
import random
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

States: TypeAlias = tuple[Any, ...]


@dataclass(slots=True)
class _Globals:
    """State of this process: the thread that holds the lock has the global generators to itself. runs: blocks of
    `lent_globals` under way. before: the generators' states before the first of them. place: the number that the generators
    were last set from; None outside of the blocks. forks: processes forked since then."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    runs: int = 0
    before: States = ()
    place: int | None = None
    forks: int = 0

    def fork(self) -> None:
        self.forks += 1

    def begin(self) -> None:
        """Set the generators of a forked process from the same number as its parent's and from how many were forked before it:
        else the processes of a user's AsyncVectorEnv would live the same episodes."""
        self.lock = threading.RLock()  # a thread that did not come along may have held it
        if self.place is not None:
            _set(key(self.forks, "forked", self.place % 2**63))


_GLOBALS = _Globals()
os.register_at_fork(before=_GLOBALS.fork, after_in_child=_GLOBALS.begin)


def key(seed: int, purpose: str, *numbers: int) -> int:
    """A 128-bit number for (seed, purpose, numbers), e.g. key(0, "shuffle", client, version). purpose: 16 bytes at most, else
    ValueError."""
    packed = struct.pack(f"<{1 + len(numbers)}q", seed, *numbers)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=16, person=purpose.encode()).digest(), "little")


def draw(seed: int, purpose: str, *numbers: int) -> random.Random:
    """A separate generator for (seed, purpose, numbers). For numpy: np.random.Generator(np.random.Philox(key(...)))."""
    return random.Random(key(seed, purpose, *numbers))


def set_globals(seed: int, purpose: str, *numbers: int) -> None:
    """Set the global generators of `random`, numpy and torch from (seed, purpose, numbers), for a user's code that draws from
    them. torch is left alone if it is not loaded, and its CUDA generator if CUDA is not in use. Costs 25 us."""
    _set(key(seed, purpose, *numbers))


def _set(place: int) -> None:
    _GLOBALS.place, _GLOBALS.forks = place, 0
    random.seed(place)
    np.random.seed([place >> shift & 0xFFFFFFFF for shift in (0, 32, 64, 96)])
    if torch := sys.modules.get("torch"):
        torch.default_generator.manual_seed(place % 2**63)  # a hundredth of what torch.manual_seed costs
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed(place % 2**63)


def states() -> States:
    """The states of the global generators of `random`, numpy and torch."""
    torch = sys.modules.get("torch")
    torchs = torch.default_generator.get_state() if torch else None
    cudas = torch.cuda.get_rng_state() if torch and torch.cuda.is_initialized() else None
    return random.getstate(), np.random.get_state(), torchs, cudas


def same(one: States, other: States) -> bool:
    """Return whether nothing was drawn between two states."""
    (own, numpys, *torchs), (its, theirs, *others) = one, other
    if own != its or numpys[0] != theirs[0] or not np.array_equal(numpys[1], theirs[1]) or numpys[2:] != theirs[2:]:
        return False
    return all(
        a is b or (a is not None and b is not None and bool((a == b).all())) for a, b in zip(torchs, others, strict=True)
    )


def _put_back(states: States) -> None:
    own, numpys, torchs, cudas = states
    random.setstate(own)
    np.random.set_state(numpys)
    if torchs is not None:
        sys.modules["torch"].default_generator.set_state(torchs)
    if cudas is not None:
        sys.modules["torch"].cuda.set_rng_state(cudas)


@contextmanager
def kept_globals() -> Iterator[None]:
    """Put the global generators of `random`, numpy and torch back, after the block, to their states before it. Such
    blocks of two threads run one after the other: two runs in one process would draw from each other's generators."""
    with _GLOBALS.lock:
        before, place, forks = states(), _GLOBALS.place, _GLOBALS.forks
        try:
            yield
        finally:
            _put_back(before)
            _GLOBALS.place, _GLOBALS.forks = place, forks


@contextmanager
def lent_globals() -> Iterator[None]:
    """Put the global generators back, after the last of such blocks, to their states before the first. For a run whose tasks
    set the generators in the user's own process, each inside `alone`; it costs nothing a task."""
    with _GLOBALS.lock:
        _GLOBALS.before = _GLOBALS.before or states()
        _GLOBALS.runs += 1
    try:
        yield
    finally:
        with _GLOBALS.lock:
            _GLOBALS.runs -= 1
            if not _GLOBALS.runs:
                _put_back(_GLOBALS.before)
                _GLOBALS.before, _GLOBALS.place = (), None


@contextmanager
def alone() -> Iterator[None]:
    """Inside the block no other thread of Shoal's sets the global generators or draws from them."""
    with _GLOBALS.lock:
        yield


@contextmanager
def globally(seed: int, purpose: str, *numbers: int) -> Iterator[None]:
    """`set_globals` inside the block, and afterwards the generators as they were. Costs 200 us."""
    with kept_globals():
        set_globals(seed, purpose, *numbers)
        yield
