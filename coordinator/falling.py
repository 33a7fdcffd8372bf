"""The watch over a run's return: whether it rose and fell back.

The one idea: a mean of returns is noisy, so a fall is measured by the rise before it and by the spread of the returns at the
best. A run that ends lower than it was must not end without a word.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

SHARE = 0.25  # part of the rise that must be lost
ERRORS = 3.0  # standard errors of the newest mean that must be lost: where all episodes were alike, one other one is no fall


@dataclass(slots=True)
class Falling:
    """The rule: the mean return of the last episodes is below its best by more than a quarter of its rise from the lowest mean
    before the best, by more than the standard deviation of the returns at the best, and by more than ERRORS standard errors.

    mean: the newest mean of a full window of episodes. error: its standard error. low: the lowest mean of all. best, version,
    base, spread: the best mean, its version, the lowest mean before it, and the standard deviation of its returns. told: True
    once a person was told.
    """

    mean: float = math.nan
    error: float = 0.0
    low: float = math.inf
    best: float = -math.inf
    version: int = 0
    base: float = math.inf
    spread: float = 0.0
    told: bool = False

    def seen(self, version: int, returns: Collection[float]) -> bool:
        """Take in the returns of the last episodes, of a full window. Returns True the first time that the rule holds."""
        mean = math.fsum(returns) / len(returns)
        spread = math.sqrt(math.fsum((x - mean) ** 2 for x in returns) / len(returns))
        self.mean, self.error, self.low = mean, spread / math.sqrt(len(returns)), min(self.low, mean)
        if mean > self.best:
            self.best, self.version, self.base, self.spread = mean, version, self.low, spread
        if self.fallen and not self.told:
            self.told = True
            return True
        return False

    @property
    def fallen(self) -> bool:
        """True while the rule holds."""
        lost = self.best - self.mean
        return lost > SHARE * (self.best - self.base) and lost > max(self.spread, ERRORS * self.error)

    def line(self, max_lag: int) -> str:
        """The words for a person. max_lag: the plan's bound, which may be lowered; 0: it has none."""
        what = f"a smaller max_lag (it is {max_lag}) or a smaller lr" if max_lag > 0 else "a smaller lr"
        rose = f"the mean return of the last 100 episodes rose to {self.best:.4g} at version {self.version:,}"
        return f"{rose} and fell back to {self.mean:.4g}: {what} may help"
