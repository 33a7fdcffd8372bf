"""Population based training (Jaderberg et al. 2017): trials that begin from the snapshots of others, with settings near theirs.

The one idea: a generation is a row of arms, and begins when the one before it is over. What an arm is (whose snapshot, which
settings) is then a function of (seed, number, what the generation before came to), so a sweep that was killed, and one on
another number of cores, has the same arms. This module is pure.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shoal.protocol import draws
from shoal.protocol.errors import UserError
from shoal.sweeps.arms import Goal
from shoal.sweeps.space import Axis

FACTORS = (0.8, 1.25)  # by which a number is changed
MOST = 10_000  # arms


@dataclass(frozen=True)
class Rules:
    """The rules of a population, `pbt:population=8,generations=5` for one.

    population: arms of a generation. generations: parts of the run, after each of which arms are compared. quantile: share of a
    generation that is replaced by the same share of its best. resample: chance that a setting of a replaced arm is drawn anew
    from its axis, in place of a change by a factor of 0.8 or 1.25 (a list: to a neighbour).
    """

    population: int = 8
    generations: int = 5
    quantile: float = 0.25
    resample: float = 0.25

    @classmethod
    def of(cls, text: str, arguments: Mapping[str, Any]) -> Rules:
        """Raises UserError for an argument that is not known or outside its range. text: as it was typed, for the error."""
        for name, value in arguments.items():
            if name not in cls.__dataclass_fields__:
                raise UserError(f"sampler={text}: pbt has no {name!r}: it has {', '.join(cls.__dataclass_fields__)}")
            whole = name in ("population", "generations")
            least, most = {"population": (2, MOST), "generations": (2, MOST), "quantile": (0.0, 0.5)}.get(name, (0.0, 1.0))
            number = isinstance(value, int) or (isinstance(value, float) and not whole)
            if isinstance(value, bool) or not number or not least <= value <= most:
                kind = "whole numbers" if whole else "numbers"
                raise UserError(f"sampler={text}: {name} is {value}: allowed are {kind} from {least:g} to {most:g}")
        found = cls(**arguments)
        if found.population * found.generations > MOST:
            raise UserError(f"sampler={text}: population times generations is above {MOST:,}")
        return found

    @property
    def replaced(self) -> int:
        """Number of arms of a generation that are replaced: at least one if the quantile is above 0."""
        return min(self.population // 2, math.ceil(self.quantile * self.population))


@dataclass
class Population:
    """The arms of a sweep by population based training. end: of a whole run, in rounds or environment steps."""

    rules: Rules
    axes: tuple[Axis, ...]
    seed: int
    goal: Goal
    end: int
    _params: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    _values: dict[int, float | None] = field(default_factory=dict)

    def over(self, arm: int, params: Mapping[str, Any], value: float | None) -> None:
        """Take note of an arm that is over. value: None if it failed."""
        plain = {name: tuple(each) if isinstance(each, list) else each for name, each in params.items()}  # a list of JSON
        self._params[arm], self._values[arm] = plain, value

    def until(self, arm: int) -> int:
        """The end of an arm's part of the run, in rounds or environment steps."""
        return -(-self.end * (arm // self.rules.population + 1) // self.rules.generations)

    def parent(self, arm: int) -> int | None:
        """The arm from whose snapshot this one begins: the one in its place in the generation before, or if that is among the
        last, one of the best. None for an arm that begins anew."""
        before = arm - self.rules.population
        if before < 0:
            return None
        ranked = self._ranked(arm // self.rules.population - 1)
        best = [number for number in ranked if self._values[number] is not None][: max(1, self.rules.replaced)]
        if before in best or not best:
            return before if best else None
        failed = self._values[before] is None
        if failed or before in ranked[len(ranked) - self.rules.replaced :]:
            return best[draws.draw(self.seed, "pbt parent", arm).randrange(len(best))]
        return before

    def settings(self, arm: int) -> dict[str, Any]:
        """The settings of an arm. The generation before must be over."""
        parent = self.parent(arm)
        draw = draws.draw(self.seed, "pbt settings", arm)
        if parent is None:
            return {axis.name: drawn(axis, draw) for axis in self.axes}
        its = self._params[parent]
        if parent == arm - self.rules.population:
            return dict(its)
        return {
            axis.name: drawn(axis, draw) if draw.random() < self.rules.resample else changed(axis, its[axis.name], draw)
            for axis in self.axes
        }

    def _ranked(self, generation: int) -> list[int]:
        """The arms of a generation, best first; failed ones last."""
        first = generation * self.rules.population

        def place(arm: int) -> tuple[bool, float, int]:
            value = self._values[arm]
            return value is None, 0.0 if value is None else -value if self.goal.largest else value, arm

        return sorted(range(first, first + self.rules.population), key=place)


def drawn(axis: Axis, draw: random.Random) -> Any:
    """A value of an axis."""
    if values := axis.listed():
        return values[draw.randrange(len(values))]
    if axis.log:
        return _on(axis, math.exp(draw.uniform(math.log(axis.low), math.log(axis.high))))
    return _on(axis, draw.uniform(axis.low, axis.high))


def changed(axis: Axis, value: Any, draw: random.Random) -> Any:
    """A value near another: a neighbour in a list or among steps, or the number times 0.8 or 1.25, within the axis."""
    up = draw.random() < 0.5
    values = axis.listed()
    if values and (axis.values or axis.step > 1 or not axis.whole):
        at = min(range(len(values)), key=lambda each: 0 if values[each] == value else 1 + _apart(values[each], value))
        return values[max(0, min(len(values) - 1, at + (1 if up else -1)))]
    found = _on(axis, value * FACTORS[up])
    if axis.whole and found == value:
        found = _on(axis, value + (1 if up else -1))
    return found


def _apart(one: Any, other: Any) -> float:
    return abs(one - other) if isinstance(one, int | float) and isinstance(other, int | float) else 0.0


def _on(axis: Axis, number: float) -> Any:
    number = max(axis.low, min(axis.high, number))
    return round(number) if axis.whole else number
