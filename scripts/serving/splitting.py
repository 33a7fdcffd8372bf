"""The share of requests that each model gets, and the model of a user who comes again.

The one idea: the model is a function of the test's name and the user's key. So it needs no memory, all processes of a server
agree, and a change of 90,10 to 80,20 moves the users of those 10 points alone.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from hashlib import blake2b
from itertools import accumulate

from shoal.protocol.errors import UserError

POINTS = 10_000


def point_of(test: str, key: str) -> int:
    """A number from 0 to 9,999, even over keys: blake2b of the test's name, a zero byte and the key, modulo 10,000."""
    return int.from_bytes(blake2b(f"{test}\0{key}".encode(), digest_size=8).digest(), "big") % POINTS


class Split:
    """The models of a test and their shares. shares: in points of 10,000, of all models together 10,000."""

    def __init__(self, test: str, models: Sequence[str], shares: Sequence[int]) -> None:
        self.test, self.models, self.shares = test, tuple(models), tuple(shares)
        self._ends = list(accumulate(shares))

    def of(self, key: str) -> str:
        """The model that answers this key."""
        return self.at(point_of(self.test, key))

    def at(self, point: int) -> str:
        """The model at a point from 0 to 9,999."""
        return self.models[bisect_right(self._ends, point)]


def split_of(text: str, models: Sequence[str], test: str = "") -> Split:
    """The split of `--split 90,10`; "": equal shares. test: its name; "": the names of the models. Raises UserError."""
    name = test or ",".join(models)
    if not text:
        each, over = divmod(POINTS, len(models))
        return Split(name, models, [each + (at < over) for at in range(len(models))])
    try:
        percent = [float(part) for part in text.split(",")]
    except ValueError:
        percent = [math.nan]
    if not all(0 <= part <= 100 for part in percent):
        raise UserError(f"--split {text}: expected a percentage for each model: --split 90,10")
    if len(percent) != len(models):
        told = f"{len(models)} model{'s' * (len(models) > 1)}"
        raise UserError(
            f"--split {text}: {len(percent)} share{'s' * (len(percent) > 1)} for {told} ({', '.join(models)}): give each one"
        )
    points = [round(part * 100) for part in percent]
    if sum(points) != POINTS or any(abs(part * 100 - point) > 1e-6 for part, point in zip(percent, points, strict=True)):
        raise UserError(f"--split {text}: the shares sum to {sum(percent):g}: they must sum to 100, with two decimals at most")
    return Split(name, models, points)
