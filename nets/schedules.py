"""Learning rates that change from round to round: a factor for the clients' rate.

The one idea: a factor is a pure function of the version that a task starts from, 0 in the first round, so that every actor
finds the same one and a resumed run goes on with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

Schedule: TypeAlias = Callable[[int], float]
"""version -> the factor, a number from 0."""


def constant(version: int, rounds: int) -> float:
    """1 in every round."""
    return 1.0


def cosine(version: int, rounds: int) -> float:
    """From 1 in the first round along half a cosine to 0 after the last (Loshchilov & Hutter 2017, equation 5, no restart)."""
    return (1.0 + math.cos(math.pi * min(1.0, version / rounds))) / 2.0


def step(version: int, rounds: int, every: int = 0, decay: float = 0.1) -> float:
    """decay ** k after k times `every` rounds; every=0: a third of the rounds."""
    return float(decay ** (version // (every or max(1, rounds // 3))))


def warmup(version: int, rounds: int, over: int = 0) -> float:
    """Linear from 1 / over in the first round to 1 in round `over`, then 1; over=0: a tenth of the rounds."""
    return min(1.0, (version + 1) / (over or max(1, rounds // 10)))


SCHEDULES: Mapping[str, Callable[[int, int], float]] = {"constant": constant, "cosine": cosine, "step": step, "warmup": warmup}
"""name -> (version, rounds) -> factor. `partial(SCHEDULES[name], rounds=100)` is a Schedule."""
