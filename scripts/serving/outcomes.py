"""The work of `shoal compare --served`: which model of a server has the better outcomes, and could it have been luck?

The one idea: a user is one number, the mean of what was posted of this user, because the requests of one user are not
independent. Users of two models are not pairs, so the test is Welch's for two samples.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shoal.jobs.settings import nearest
from shoal.protocol.errors import UserError
from shoal.runs.comparison import LETTERS, SAME
from shoal.runs.metrics import directed
from shoal.runs.paired import Floats, holm, scipy_stats

ALPHA = 0.05
LEAST = 6  # users of a model, at least


@dataclass(frozen=True)
class Arm:
    """The outcomes of one model. units: users, or requests without a user. low, high: the 95 % interval of the difference of
    its mean from A's; p: of no difference; p_holm: p adjusted for the number of comparisons; verdict: "better", "worse" or
    "same within the noise". Of A these are None and ""."""

    letter: str
    name: str
    units: int
    mean: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    verdict: str = ""


@dataclass(frozen=True, repr=False)
class Served:
    """The findings of a comparison of outcomes; `print` shows what `shoal compare --served` prints.

    metric: name of the outcome. goal: "max" or "min". by: "users" or "requests". arms: the models, most units first: A.
    left_out: lines about what has no part in this.
    """

    metric: str
    goal: str
    by: str
    arms: tuple[Arm, ...]
    left_out: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """Return all fields as plain data: the object that `--json` prints."""
        return asdict(self)

    def __repr__(self) -> str:
        lines = [f"{one.letter}  {one.name}   {self.metric} {one.mean:.4g} over {one.units:,} {self.by}" for one in self.arms]
        for one in self.arms[1:]:
            said = f"{one.letter} and A are the {SAME}" if one.verdict == SAME else f"{one.letter} is {one.verdict}"
            more = f", {one.p_holm:.2g} after Holm for {len(self.arms) - 1} comparisons" if len(self.arms) > 2 else ""
            lines.append(
                f"{one.letter} - A = {one.difference:+.4g}   95 % interval [{one.low:+.4g}, {one.high:+.4g}]   "
                f"verdict: {said} (Welch p = {one.p:.2g}{more})"
            )
        return "\n".join([*lines, *(f"left out: {why}" for why in self.left_out)])


def compare_served(folder: Path | str, goal: str = "") -> Served:
    """Compare the outcomes of a server's models, the model with most users against each other.

    folder: that holds serve.jsonl. goal: an outcome's name, its direction in front if smaller is better ("min:seconds"); "":
    the only one. Raises UserError, one line.
    """
    path = Path(folder) / "serve.jsonl"
    if not path.is_file():
        raise UserError(f"{folder} has no serve.jsonl: name the folder of a server, a run's or serving/NAME-DATE-TIME")
    with path.open(encoding="utf-8", errors="replace") as lines:
        return judged(map(_line, lines), goal)


def _line(text: str) -> Mapping[str, Any]:
    """A line of serve.jsonl; {} for one that is no answer and no outcome, as of a disk that was full."""
    try:
        found = json.loads(text)
        well = "request" in found if "model" in found else bool({"key", "request"} & set(found)) and _is_number(found["value"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}
    return found if isinstance(found, dict) and well else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= 1e300


def judged(lines: Iterable[Mapping[str, Any]], goal: str = "") -> Served:
    """Compare the outcomes in the lines of serve.jsonl."""
    models: dict[str, set[str]] = {}  # user or request -> models that answered
    users: dict[str, str] = {}  # request -> user, as far as there is one
    outcomes: dict[str, list[tuple[str, str, float]]] = {}  # name -> ("key" or "request", which, value)
    for line in lines:
        if "model" in line:
            request, key = f"request {line['request']}", line.get("key")
            users[request] = unit = request if key is None else f"key {key}"
            models.setdefault(unit, set()).add(str(line["model"]))
        elif "outcome" in line:
            kind = "key" if "key" in line else "request"
            outcomes.setdefault(str(line["outcome"]), []).append((kind, f"{kind} {line[kind]}", float(line["value"])))
    name, smaller = _chosen(goal, list(outcomes))
    values: dict[str, list[float]] = {}
    unknown = 0
    for kind, which, value in outcomes[name]:
        unit = users.get(which, "") if kind == "request" else which
        if unit in models:
            values.setdefault(unit, []).append(value)
        else:
            unknown += 1
    several = [unit for unit in values if len(models[unit]) > 1]
    left = [f"{unknown:,} outcomes of requests or users that were not answered here"] * (unknown > 0)
    left += [f"{len(several):,} users whom more than one model answered, as after a change of the split"] * bool(several)
    by_model: dict[str, list[float]] = {}
    for unit, found in values.items():
        if unit not in several:
            by_model.setdefault(next(iter(models[unit])), []).append(float(np.mean(found)))
    by = "users" if any(unit.startswith("key ") for unit in values) else "requests"
    return Served(name, "min" if smaller else "max", by, _arms(by_model, smaller, by), tuple(left))


def _chosen(goal: str, there: Sequence[str]) -> tuple[str, bool]:
    """(the outcome's name, whether smaller is better)."""
    way, name = directed(goal, "NAME")
    if not there:
        raise UserError('no outcome was posted: POST /outcome with {"key": USER, "value": 1}, say')
    if name and name not in there:
        raise UserError(f"no outcome {name!r}: {nearest(name, there)}")
    if not name and len(there) > 1:
        raise UserError(f"there are several outcomes: {', '.join(there)}; name one: --goal {there[0]}")
    return name or there[0], way == "min"


def _arms(by_model: Mapping[str, list[float]], smaller: bool, by: str) -> tuple[Arm, ...]:
    told = sorted(((name, np.array(found)) for name, found in by_model.items()), key=lambda pair: -len(pair[1]))
    if len(told) < 2:
        raise UserError(f"{', '.join(by_model) or 'no model'} alone has outcomes: two models are compared")
    if few := [f"{name} {len(found)}" for name, found in told if len(found) < LEAST]:
        raise UserError(f"too few {by} with outcomes ({', '.join(few)}): at least {LEAST} of each model are needed")
    (first, base), *others = told
    if len(others) >= len(LETTERS):
        raise UserError(f"{len(told)} models have outcomes: at most {len(LETTERS)} are compared at once")
    tests = [_welch(found, base) for _, found in others]
    adjusted = holm([p for p, _, _ in tests])
    arms = [Arm("A", first, len(base), float(base.mean()))]
    for letter, (name, found), (p, low, high), p_holm in zip(LETTERS[1:], others, tests, adjusted, strict=False):
        mean = float(found.mean())
        gain = (base.mean() - mean) if smaller else (mean - base.mean())
        verdict = SAME if p_holm > ALPHA else "better" if gain > 0 else "worse"
        arms.append(Arm(letter, name, len(found), mean, float(mean - base.mean()), low, high, p, p_holm, verdict))
    return tuple(arms)


def _welch(found: Floats, base: Floats) -> tuple[float, float, float]:
    """(p, low, high) of the difference of two means [n], [m] (Welch 1947, by scipy.stats.ttest_ind)."""
    if np.ptp(found) == 0 == np.ptp(base):
        same = float(found[0] - base[0])
        return (1.0 if same == 0 else 0.0), same, same
    test = scipy_stats().ttest_ind(found, base, equal_var=False)
    bounds = test.confidence_interval(1 - ALPHA)
    return (1.0 if math.isnan(test.pvalue) else float(test.pvalue)), float(bounds.low), float(bounds.high)
