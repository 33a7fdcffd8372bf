"""Schedules of the clients' learning rate: a factor of the rate for each round.

The one idea: a factor is a pure function of the version that a task starts from (0 in the first round), so every actor finds
the same factor, and a resumed run goes on with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

Schedule: TypeAlias = Callable[[int], float]
"""A schedule: version -> factor of the learning rate, a finite number from 0."""


def constant(version: int, rounds: int) -> float:
    """The factor 1 in every round."""
    return 1.0


def cosine(version: int, rounds: int) -> float:
    """Half a cosine from 1 in the first round to 0 after the last (Loshchilov & Hutter 2017, equation 5, no restart)."""
    return (1.0 + math.cos(math.pi * min(1.0, version / rounds))) / 2.0


def step(version: int, rounds: int, every: int = 0, decay: float = 0.1) -> float:
    """The factor decay ** k after k times `every` rounds. every: number of rounds; 0: a third of all."""
    return float(decay ** (version // (every or max(1, rounds // 3))))


def warmup(version: int, rounds: int, over: int = 0) -> float:
    """A line from 1 / over in the first round to 1 in round `over`, then 1. over: number of rounds; 0: a tenth of all."""
    return min(1.0, (version + 1) / (over or max(1, rounds // 10)))


SCHEDULES: Mapping[str, Callable[[int, int], float]] = {"constant": constant, "cosine": cosine, "step": step, "warmup": warmup}
"""Schedules by name: (version, rounds) -> factor. `partial(SCHEDULES[name], rounds=100)` is a Schedule."""
