"""The space of a sweep: an axis for each setting that varies, and the seeds.

The one idea: a text says an axis the same way on the command line, in sweep.toml and in Python. `lr=0.01,0.1` is a list,
`lr=1e-4..1e-1~log` a range, `layers=1..9~2` a range with a step. A setting with one value is no axis. `seed` is no axis
either: all arms have the same seeds.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.jobs.job import Job
from shoal.jobs.settings import Range, coerced, shown
from shoal.protocol.errors import UserError, signed

RANGE = re.compile(r"([^~]*?)\.\.([^~]*?)(?:~([^~]*))?")
WHOLE = re.compile(r"[+-]?\d[\d_]*")
SEEDS = 10_000  # seeds at most
CHECKED = 1_000  # combinations of a grid that are checked before the sweep begins


@dataclass(frozen=True)
class Axis:
    """The values that one setting may have: `values`, or if there are none, the numbers from low to high, both included.

    log: numbers are drawn evenly in their logarithm. step: distance of neighbouring numbers; 0: any number. whole: whole
    numbers only.
    """

    name: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float = 0.0
    whole: bool = False

    def listed(self) -> tuple[Any, ...]:
        """Return all values in order; none if the axis is a range of any numbers."""
        if self.values or self.log or not self.step:
            return self.values
        many = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        numbers = (self.low + self.step * at for at in range(many))
        return tuple(int(number) for number in numbers) if self.whole else tuple(numbers)

    def plain(self) -> Any:
        """The axis as sweep.toml holds it: a list of values, or the text of a range."""
        if self.values:
            return [list(value) if isinstance(value, tuple) else value for value in self.values]
        words = [int(self.low), int(self.high)] if self.whole else [self.low, self.high]
        tail = "~log" if self.log else f"~{self.step:g}" if self.step and not (self.whole and self.step == 1) else ""
        return f"{words[0]!r}..{words[1]!r}{tail}"


@dataclass(frozen=True)
class Space:
    """axes: the settings that vary. seeds: each arm is tried with each of them. fixed: name -> value of all other settings."""

    axes: tuple[Axis, ...] = ()
    seeds: tuple[int, ...] = (0,)
    fixed: Mapping[str, Any] | None = None

    @property
    def size(self) -> int:
        """Number of combinations; 0 if an axis is a range of any numbers."""
        return math.prod(len(axis.listed()) for axis in self.axes)

    def grid(self) -> Iterator[dict[str, Any]]:
        """Return all combinations, name -> value; the last axis varies fastest."""
        names = [axis.name for axis in self.axes]
        for values in itertools.product(*(axis.listed() for axis in self.axes)):
            yield dict(zip(names, values, strict=True))

    def at(self, number: int) -> dict[str, Any]:
        """The combination of this number in `grid`."""
        found: dict[str, Any] = {}
        for axis in reversed(self.axes):
            values = axis.listed()
            number, place = divmod(number, len(values))
            found[axis.name] = values[place]
        return dict(reversed(found.items()))

    def plain(self) -> dict[str, Any]:
        """The axes and seeds as sweep.toml holds them; `space_of` reads them back."""
        return {**{axis.name: axis.plain() for axis in self.axes}, "seed": list(self.seeds)}


def space_of(given: Mapping[str, Any], known: Mapping[str, Range] | None = None, seed: int = 0) -> Space:
    """The space that name -> text or values says. known: the job's settings, None for a user's own objective. seed: the seed
    of all trials if `given` names no seeds.

    A value is a text as on the command line, a list or `range` of values, one value, or a distribution of Optuna's.
    Raises UserError, one line, for an empty list, a bad range and a value twice.
    """
    seeds: tuple[int, ...] = (seed,)
    axes, fixed = list[Axis](), dict[str, Any]()
    for name, what in given.items():
        if name == "seed":
            seeds = _seeds(what)
            continue
        axis = _axis(name, what, known.get(name) if known is not None else None)
        if isinstance(axis, Axis):
            axes.append(axis)
        elif known is None:  # an objective finds it among its trial's parameters
            axes.append(Axis(name, axis))
        else:
            fixed[name] = axis[0]
    return Space(tuple(axes), seeds, fixed)


def check(space: Space, job: Job, grid: bool) -> None:
    """Raises UserError, as the job itself does, for a setting that the job or its method lacks, and for a value that the job
    refuses, alone or beside others."""
    first = {axis.name: (axis.values or (int(axis.low) if axis.whole else axis.low,))[0] for axis in space.axes}
    job.configured({**(space.fixed or {}), **first}, space.seeds[0])
    for axis in space.axes:
        for value in axis.values or ([int(axis.low), int(axis.high)] if axis.whole else [axis.low, axis.high]):
            if "method" not in first or grid:
                job.configured({**(space.fixed or {}), **first, axis.name: value})
    if grid:
        for params in itertools.islice(space.grid(), CHECKED):
            job.configured({**(space.fixed or {}), **params})


def said(params: Mapping[str, Any]) -> str:
    """Settings as a user types them: "lr=0.1 batch_size=8"; numbers with at most six significant digits."""
    return " ".join(f"{name}={short(value)}" for name, value in params.items())


def short(value: Any) -> str:
    """Return a value as a table shows it."""
    return f"{value:.6g}" if isinstance(value, float) else shown(value)


def _axis(name: str, what: Any, allowed: Range | None) -> Axis | tuple[Any]:
    """The axis; or a tuple of the only value."""
    if isinstance(what, str):
        return _said(name, what, allowed)
    if hasattr(what, "choices"):  # a categorical distribution of Optuna's
        what = list(what.choices)
    elif hasattr(what, "low") and hasattr(what, "high"):
        whole = type(what).__name__.startswith("Int")
        axis = Axis(name, (), what.low, what.high, bool(what.log), float((not what.log and what.step) or 0), whole)
        return _range(axis, f"{name}={axis.plain()}", allowed)
    elif hasattr(what, "tolist"):  # an array
        what = what.tolist()
    if allowed is not None and type(allowed.default) is tuple and isinstance(what, list | tuple):
        what = what if what and isinstance(what[0], list | tuple) else [what]
    if not isinstance(what, list | tuple | range):
        if what is not None and not isinstance(what, str | int | float | bool) and allowed is None:
            raise UserError(f"{name} is {signed(what)}: expected a list of values, or a range such as '1e-4..1e-1~log'")
        what = [what]
    return _listed(name, list(what), allowed)


def _said(name: str, text: str, allowed: Range | None) -> Axis | tuple[Any]:
    kind = None if allowed is None else type(allowed.default)
    match = RANGE.fullmatch(text.strip())
    if match and (kind in (int, float) or (kind is None and _number(match[1]) is not None)):
        return _range(_between(name, text, match, kind), f"{name}={text}", allowed)
    parts = [part.strip() for part in text.split("/" if kind is tuple else ",")]
    if "" in parts and (kind in (int, float, tuple) or not text.strip() or len(parts) > 1):
        raise UserError(f"{name}={text}: the list has no value at one place; {name}=0.01,0.1 is a list, say")
    return _listed(name, [_guessed(part) for part in parts] if kind is None else parts, allowed)


def _between(name: str, text: str, match: re.Match[str], kind: type | None) -> Axis:
    low, high, how = _number(match[1]), _number(match[2]), match[3]
    step = _number(how) if how not in (None, "log") else 0.0
    if low is None or high is None or step is None:
        raise UserError(
            f"{name}={text}: a range is LOW..HIGH, LOW..HIGH~log or LOW..HIGH~STEP, in numbers; 1e-4..1e-1~log, say"
        )
    if how not in (None, "log") and step <= 0:
        raise UserError(f"{name}={text}: the step of a range is above 0; {name}={match[1]}..{match[2]}~0.5, say")
    ints = WHOLE.fullmatch(match[1].strip()) and WHOLE.fullmatch(match[2].strip()) and step == int(step)
    whole = kind is int or (kind is None and bool(ints))
    return Axis(name, (), low, high, how == "log", step or float(whole and how != "log"), whole)


def _range(axis: Axis, said: str, allowed: Range | None) -> Axis | tuple[Any]:
    if not all(map(math.isfinite, (axis.low, axis.high, axis.step))):
        raise UserError(f"{said}: the ends and the step of a range are finite numbers; {axis.name}=0.001..0.1, say")
    if axis.low > axis.high:
        raise UserError(
            f"{said}: a range goes from its lowest number to its highest: {axis.name}={axis.high:g}..{axis.low:g}, say"
        )
    if axis.log and axis.low <= 0:
        first = "1" if axis.whole else "1e-5"
        raise UserError(f"{said}: a range with ~log begins above 0; {axis.name}={first}..{axis.high:g}~log, say")
    if axis.whole and not (axis.low == int(axis.low) and axis.high == int(axis.high) and axis.step == int(axis.step)):
        raise UserError(f"{said}: {axis.name} is a whole number, so its range and step are")
    for end in (axis.low, axis.high) if allowed is not None else ():
        coerced(axis.name, int(end) if axis.whole else end, allowed)  # type: ignore[arg-type]
    if axis.step > axis.high - axis.low > 0:
        raise UserError(f"{said}: the step is larger than the range, which so has one value; {axis.name}={axis.low:g}, say")
    if axis.low == axis.high:
        return (int(axis.low) if axis.whole else axis.low,)
    return axis


def _listed(name: str, values: Sequence[Any], allowed: Range | None) -> Axis | tuple[Any]:
    if not values:
        raise UserError(f"{name}: the list of values is empty; {name}=0.01,0.1, say")
    found = tuple(value if allowed is None or callable(value) else coerced(name, value, allowed) for value in values)
    for at, value in enumerate(found):
        if value in found[:at] and type(value) is type(found[found.index(value)]):
            raise UserError(f"{name}={','.join(map(short, found))}: {short(value)} stands there twice; give each value once")
    return Axis(name, found) if len(found) > 1 else (found[0],)


def _seeds(what: Any) -> tuple[int, ...]:
    axis = _axis("seed", what, Range("", 0, least=0))
    seeds = axis.listed() if isinstance(axis, Axis) else axis
    if not seeds or len(seeds) > SEEDS:
        raise UserError(f"seed={what}: seeds are whole numbers from 0, {SEEDS:,} at most; seed=0..9, say")
    return tuple(int(seed) for seed in seeds)


def _number(text: str | None) -> float | None:
    try:
        return float(str(text).replace("_", ""))
    except ValueError:
        return None


def _guessed(text: str) -> Any:
    """A text of an objective's space as a value: true, false, a whole number, a number, or the text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if WHOLE.fullmatch(text):
        return int(text)
    return text if (number := _number(text)) is None else number
