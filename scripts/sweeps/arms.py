"""Arms: trials of the same settings under different seeds, judged by their mean and its interval.

The one idea: the luckiest seed of many is no measure of a setting. An arm's value is the mean over all its seeds, and an arm
of which a trial failed or was pruned has no value to win with. This module is pure.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LEVEL = 0.95  # of the interval


@dataclass(frozen=True)
class Goal:
    """The goal of a sweep: the largest or smallest last value of a metric ("value" for what an objective returns)."""

    metric: str
    largest: bool

    def __str__(self) -> str:
        return f"{'max' if self.largest else 'min'}:{self.metric}"


@dataclass(frozen=True)
class Arm:
    """An arm as it stands. number: in the order in which arms were asked for. values: seed -> value of its complete trials.
    states: state -> number of trials. steps: over all trials. origin: of a population, the arm from whose snapshot it begins;
    None for one that begins anew. state: complete, pruned, failed, or running."""

    number: int
    params: Mapping[str, Any]
    values: Mapping[int, float] = field(default_factory=dict)
    states: Mapping[str, int] = field(default_factory=dict)
    steps: int = 0
    why: str = ""
    origin: int | None = None

    @property
    def state(self) -> str:
        for state in ("failed", "pruned", "running"):
            if self.states.get(state):
                return state
        return "complete" if self.values else "running"

    @property
    def mean(self) -> float:
        """NaN if no trial is complete."""
        return statistics.fmean(self.values.values()) if self.values else math.nan

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval of the mean, at LEVEL, by Student's t; None with fewer than two seeds."""
        return interval(list(self.values.values()))


def lineage(arms: Sequence[Arm], arm: Arm) -> list[Arm]:
    """The arms whose snapshots an arm comes from, the first one first, and the arm itself."""
    by_number, found = {each.number: each for each in arms}, [arm]
    while (origin := found[0].origin) is not None and origin in by_number:
        found.insert(0, by_number[origin])
    return found


def tree(arms: Sequence[Arm]) -> list[tuple[int, Arm]]:
    """The arms as a tree, each with its depth: an arm stands below the one from whose snapshot it begins, in the order of their
    numbers."""
    below: dict[int | None, list[Arm]] = {}
    numbers = {arm.number for arm in arms}
    for arm in sorted(arms, key=lambda each: each.number):
        below.setdefault(arm.origin if arm.origin in numbers else None, []).append(arm)
    found: list[tuple[int, Arm]] = []
    waiting = [(0, arm) for arm in reversed(below.get(None, []))]
    while waiting:
        depth, arm = waiting.pop()
        found.append((depth, arm))
        waiting += [(depth + 1, each) for each in reversed(below.get(arm.number, []))]
    return found


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The interval of the mean of these values, at LEVEL, by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    mean, wide = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    reach = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * wide
    return mean - reach, mean + reach


def ranked(arms: Sequence[Arm], goal: Goal) -> list[Arm]:
    """The arms, best first: complete ones by their mean, then those pruned, running and failed, in the order asked."""
    order = {state: at for at, state in enumerate(("complete", "running", "pruned", "failed"))}

    def place(arm: Arm) -> tuple[int, float, int]:
        value = arm.mean if arm.state == "complete" else 0.0
        return order[arm.state], -value if goal.largest else value, arm.number

    return sorted(arms, key=place)


def best(arms: Sequence[Arm], goal: Goal) -> Arm | None:
    """The complete arm of the best mean (of equal ones, the first asked); None if no arm is complete."""
    first = next(iter(ranked(arms, goal)), None)
    return first if first is not None and first.state == "complete" else None


def as_good(arm: Arm, other: Arm) -> bool | None:
    """True if the interval of the differences between two arms, seed by seed, holds 0; None with fewer than two common
    seeds."""
    common = [seed for seed in arm.values if seed in other.values]
    apart = interval([arm.values[seed] - other.values[seed] for seed in common])
    return None if apart is None else apart[0] <= 0 <= apart[1]
