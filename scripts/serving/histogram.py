"""A histogram of times, from a microsecond to hours, in which no time is off by more than a thirty-second part.

The one idea: the buckets of each power of two are 32 equal ones (as in Gil Tene's HdrHistogram). So counting a time is one
addition, and the counts of several processes are added up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

SUB = 5  # bits of a number that a bucket keeps
UNIT = 1e-6  # seconds


def bucket(seconds: float) -> int:
    """The number of the bucket of a time."""
    units = max(0, round(seconds / UNIT))
    shift = max(0, units.bit_length() - SUB - 1)
    return (shift << SUB) + (units >> shift)


def longest(number: int) -> float:
    """The longest time in a bucket, in seconds."""
    shift = max(0, (number >> SUB) - 1)
    return (((number - (shift << SUB)) + 1 << shift) - 1) * UNIT


@dataclass(slots=True)
class Histogram:
    """Counts by bucket. total: their sum. seconds: sum of the times."""

    counts: Counter[int] = field(default_factory=Counter)
    total: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bucket(seconds)] += 1
        self.total += 1
        self.seconds += seconds

    def quantile(self, share: float) -> float | None:
        """The time that `share` of the times do not exceed, in seconds; None if there are none."""
        if not self.total:
            return None
        before, wanted = 0, share * self.total
        for number in sorted(self.counts):
            before += self.counts[number]
            if before >= wanted:
                return longest(number)
        raise AssertionError("the counts sum to the total")

    def plain(self) -> list[tuple[int, int]]:
        """The counts as JSON data: pairs [bucket, count]."""
        return [(number, self.counts[number]) for number in sorted(self.counts)]


def added(histograms: Iterable[Histogram]) -> Histogram:
    """The histogram of all times together."""
    total = Histogram()
    for one in histograms:
        total.counts.update(one.counts)
        total.total += one.total
        total.seconds += one.seconds
    return total


def histogram_of(pairs: Iterable[tuple[int, int]], seconds: float = 0.0) -> Histogram:
    """The histogram that `plain` wrote."""
    counts: Mapping[int, int] = dict(pairs)
    return Histogram(Counter(counts), sum(counts.values()), seconds)


class Latencies:
    """The times of all answers, and of the answers of the last WINDOW to 2 * WINDOW seconds."""

    WINDOW = 10.0

    def __init__(self, now: float) -> None:
        self.all = Histogram()
        self._before, self._recent, self._since = Histogram(), Histogram(), now
        self._from = now  # time since which the recent answers are counted

    def add(self, seconds: float, now: float) -> None:
        self._turn(now)
        self.all.add(seconds)
        self._recent.add(seconds)

    def recent(self, now: float) -> Histogram:
        self._turn(now)
        return added([self._before, self._recent])

    def covered(self, now: float) -> float:
        """The seconds whose answers `recent` has."""
        self._turn(now)
        return now - self._from

    def _turn(self, now: float) -> None:
        if (past := now - self._since) >= self.WINDOW:
            if past < 2 * self.WINDOW:
                self._before, self._from = self._recent, self._since
            else:
                self._before, self._from = Histogram(), now - self.WINDOW
            self._recent, self._since = Histogram(), now
