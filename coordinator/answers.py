"""The aggregator of a pool, whose fold completes calls and whose weights never move.

The one idea: what goes down is a brief of calls and what comes up is their answers, so tasks, leases, briefs and contributions
are those of any run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from shoal.aggregators import State
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.work import Contribution, Moved, Task


class Answers:
    """calls: the brief of a task, by its index. done: takes the answers of a task; it raises ValueError for bytes that are
    none."""

    linear: ClassVar[bool] = False

    def __init__(self, calls: Callable[[int], Bundle], done: Callable[[int, Bundle], None]) -> None:
        self._calls, self._done = calls, done
        self._weights = Bundle.zeros(Layout.run(1))

    def weights(self) -> Bundle:
        return self._weights

    def brief(self, task: Task) -> Bundle:
        return self._calls(task.index)

    def fold(self, contribution: Contribution) -> None:
        self._done(contribution.task.index, contribution.bundle)

    def step(self) -> Moved:
        return Moved(weights=False)

    def state(self) -> State:
        return {}

    def load(self, weights: Bundle, state: State) -> None:
        """Do nothing: the results of a pool are with its caller."""
