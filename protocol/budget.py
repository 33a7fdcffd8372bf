"""Limits of what one key may send: bytes and messages a second, each with some saved up.

The one idea: a token bucket for each key, filled by the clock that is passed in; a message that does not fit is dropped and
reported, and costs no other key anything.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

KEYS = 65_536  # buckets kept; the bucket that was used longest ago goes first, and would be full again by then


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits of one key. An actor sends again what was dropped.

    bytes: bytes a second; messages: messages a second, of which a frame may hold thousands; seconds: seconds' worth of both
    that may be saved up.
    """

    bytes: float = 2e9
    messages: float = 5_000
    seconds: float = 4.0


@dataclass(slots=True)
class Bucket:
    bytes: float
    messages: float
    at: float


class Buckets:
    """A bucket for each key. A message larger than a full bucket passes when the bucket is full, and leaves a debt."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._of: OrderedDict[str, Bucket] = OrderedDict()

    def take(self, key: str, nbytes: int, now: float) -> bool:
        """Take a message of `nbytes` from the key's bucket. Returns False, and takes nothing, if there is no room for it."""
        bucket = self._filled(key, now)
        most = self.budget.bytes * self.budget.seconds
        if bucket.messages < 1 or bucket.bytes < min(nbytes, most):
            return False
        bucket.messages -= 1
        bucket.bytes -= nbytes
        return True

    def charge(self, key: str, messages: float, now: float) -> None:
        """Take so many messages more from the key's bucket, which may leave a debt."""
        self._filled(key, now).messages -= messages

    def _filled(self, key: str, now: float) -> Bucket:
        budget = self.budget
        bucket = self._of.get(key) or Bucket(math.inf, math.inf, now)
        self._of[key] = bucket
        self._of.move_to_end(key)
        if len(self._of) > KEYS:
            self._of.popitem(last=False)
        bucket.bytes = min(budget.bytes * budget.seconds, bucket.bytes + (now - bucket.at) * budget.bytes)
        bucket.messages = min(budget.messages * budget.seconds, bucket.messages + (now - bucket.at) * budget.messages)
        bucket.at = now
        return bucket
