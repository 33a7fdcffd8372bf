"""A stream with steps at fixed times: every `deadline` seconds a step is made of what has come since the last one.

The one idea: FedFix (Fraboni et al. 2023) is a stream whose steps follow the clock and not the number of contributions, so that
a version lasts for as long with slow clients as with fast ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from shoal.coordinator.deciding.plans import Outcome, Seats
from shoal.coordinator.deciding.plans.stream import Stream
from shoal.protocol.work import Task


class Periods(Stream):
    """The schedule of a stream with a step every `deadline` seconds.

    deadline: seconds from one step to the next. least: contributions that a step needs; if fewer are there when the time is up,
    the step follows as soon as they are. max_lag, and further options: as in Stream.
    """

    def __init__(self, deadline: float, max_lag: int, *, least: int = 1, **options: Any) -> None:
        super().__init__(least, max_lag, **options)
        self.deadline = deadline
        self.began: dict[int, float] = {}  # version -> time at which it became the newest

    def assign(self, seats: Seats, news: Sequence[Outcome], version: int, now: float) -> Sequence[Task]:
        self._since(version, now)
        return super().assign(seats, news, version, now)

    def enough(self, folded: int, outstanding: int, version: int, now: float) -> bool:
        """The core asks about the next version too, while the step to it waits for contributions: its period has not begun."""
        lasts = now - self.began.get(version, now)
        return lasts >= self.deadline and folded >= self.batch

    def wakes(self, version: int, now: float) -> float:
        due = self._since(version, now) + self.deadline
        return min(due if now < due else math.inf, super().wakes(version, now))

    def _since(self, version: int, now: float) -> float:
        """Return the time at which the period of this version, the newest, began. The one before is still asked about."""
        if version not in self.began:
            self.began = {one: time for one, time in self.began.items() if one >= version - 1}
            self.began[version] = now
        return self.began[version]
