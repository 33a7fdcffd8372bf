"""A sweep as a picture: parallel coordinates of its arms, and their curves.

The one idea: an arm is one line on each side, in the colour of its value; an arm that was pruned or failed is grey.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shoal.protocol.errors import UserError
from shoal.runs.targets import figures, writable
from shoal.sweeps.arms import Arm, Goal, best
from shoal.sweeps.folder import SweepDir
from shoal.sweeps.space import Axis, short, space_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY = "#b0b0b0"
MOST = 12  # axes of parallel coordinates, and labels of an axis of choices
Floats = npt.NDArray[np.float64]


def plot(folder: SweepDir, out: Path | str | None = None) -> Path:
    """Draw a sweep into `out`, or into sweep.png in its folder. Returns the path. Raises UserError for a sweep without a trial,
    for a suffix that is no picture's, and if matplotlib is not installed."""
    from shoal.sweeps.found import arms_of
    from shoal.sweeps.planning import goal_of

    target = writable(folder.picture if out is None else out)
    asked, rows = folder.asked(), folder.rows()
    if not rows:
        raise UserError(f"{folder.path} has no trial yet; let the sweep begin one")
    goal = goal_of(asked.goal)
    space = space_of(asked.space)
    arms = arms_of(rows, len(space.seeds))
    figure = figures()(figsize=(14.0, 5.0), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    shades = _shades(arms, goal)
    _coordinates(left, arms, goal, shades, {axis.name: axis for axis in space.axes})
    _curves(right, curves(folder, rows, goal), arms, goal, shades)
    figure.suptitle(f"{Path(asked.name).name}: {len(rows)} trials, {len(arms)} arms", fontsize=11)
    figure.savefig(target, dpi=120)
    return target


def curves(folder: SweepDir, rows: Sequence[Mapping[str, Any]], goal: Goal) -> dict[int, list[tuple[Floats, Floats]]]:
    """Arm -> (steps, values) of each of its trials that reported anything."""
    found: dict[int, list[tuple[Floats, Floats]]] = {}
    for row in rows:
        if "run" in row:
            history = folder.trial(row["trial"]).rows()
            points = [(each["version"], each["metrics"].get(goal.metric)) for each in history]
        else:
            points = [tuple(pair) for pair in row.get("values", ())]
        kept = np.array([pair for pair in points if pair[1] is not None], dtype=np.float64).reshape(-1, 2)
        if len(kept):
            found.setdefault(row["arm"], []).append((kept[:, 0], kept[:, 1]))
    return found


def places(arms: Sequence[Arm], name: str, axis: Axis | None) -> tuple[list[float], list[tuple[float, str]]]:
    """Return the place of each arm's value on the axis of a setting, from 0 to 1, and the axis's labels. NaN: the arm has no
    value."""
    given = [arm.params.get(name) for arm in arms]
    known = [value for value in given if name is not None and value is not None]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in known) and len(known) > 0
    if not numbers or (axis is not None and axis.values and len(axis.values) <= MOST):
        values = list(axis.values) if axis is not None and axis.values else known
        texts = list(dict.fromkeys(short(value) for value in values))
        at = {text: (number + 0.5) / len(texts) for number, text in enumerate(texts)}
        labels = [(place, text) for text, place in at.items()][: 2 * MOST]
        return [math.nan if value is None else at.get(short(value), math.nan) for value in given], labels
    low, high = min(known), max(known)
    log = (axis.log if axis is not None else False) or (low > 0 and high / low > 100)
    scale = math.log if log else float
    width = (scale(high) - scale(low)) or 1.0
    few = all(isinstance(value, int) for value in known) and high - low <= MOST
    middle = [*range(int(low) + 1, int(high))] if few else [math.sqrt(low * high) if log else (low + high) / 2]
    ticks = [low, *middle, high] if high > low else [low]
    labels = [((scale(tick) - scale(low)) / width, f"{tick:.3g}") for tick in ticks]
    return [math.nan if value is None else (scale(value) - scale(low)) / width for value in given], labels


def _shades(arms: Sequence[Arm], goal: Goal) -> dict[int, Any]:
    from matplotlib import colormaps

    done = {arm.number: arm.mean for arm in arms if arm.state == "complete"}
    low, high = min(done.values(), default=0.0), max(done.values(), default=1.0)
    width = (high - low) or 1.0
    share = {number: (mean - low) / width for number, mean in done.items()}
    return {number: colormaps["viridis"](one if goal.largest else 1 - one) for number, one in share.items()}


def _coordinates(ax: Axes, arms: Sequence[Arm], goal: Goal, shades: Mapping[int, Any], axes: Mapping[str, Axis]) -> None:
    names = list(dict.fromkeys([*axes, *(name for arm in arms for name in arm.params)]))[:MOST]
    columns = [places(arms, name, axes.get(name)) for name in names]
    values = [Arm(arm.number, {goal.metric: arm.mean if arm.state == "complete" else None}) for arm in arms]
    columns.append(places(values, goal.metric, None) if shades else ([math.nan] * len(arms), []))
    first = best(arms, goal)
    for at, arm in sorted(enumerate(arms), key=lambda pair: pair[1].number in shades):
        colour, is_best = shades.get(arm.number, GREY), arm is first
        line = [column[0][at] for column in columns]
        ax.plot(
            line, color=colour, linewidth=2.5 if is_best else 1.1, alpha=1.0 if is_best else 0.7, zorder=3 if is_best else 1
        )
    for at, (_, labels) in enumerate(columns):
        ax.axvline(at, color="black", linewidth=0.8)
        for place, text in labels:
            ax.annotate(text[:16], (at, place), xytext=(3, 0), textcoords="offset points", fontsize=7, va="center", zorder=4)
    ax.set_xticks(range(len(columns)), [*names, goal.metric], rotation=20, fontsize=8)
    ax.set_yticks([])
    ax.set_xlim(-0.1, len(columns) - 1 + 0.35)
    ax.spines[["top", "right", "left", "bottom"]].set_visible(False)
    ax.set_title("arms, in the colour of their value (grey: pruned, failed, running)", fontsize=9)


def _curves(
    ax: Axes,
    found: Mapping[int, list[tuple[Floats, Floats]]],
    arms: Sequence[Arm],
    goal: Goal,
    shades: Mapping[int, Any],
) -> None:
    first = best(arms, goal)
    for arm in arms:
        seeds, is_best = found.get(arm.number, []), arm is first
        colour = shades.get(arm.number, GREY)
        for x, y in seeds if is_best else ():
            ax.plot(x, y, color=colour, linewidth=0.7, alpha=0.5)
        if seeds:
            x = np.unique(np.concatenate([each for each, _ in seeds]))
            x = x[x <= min(each[-1] for each, _ in seeds)]
            mean = np.mean([np.interp(x, *one) for one in seeds], axis=0) if len(x) else x
            ax.plot(x, mean, color=colour, linewidth=2.5 if is_best else 1.0, marker="." if len(x) < 3 else None)
    ax.set_xlabel("step" if not any(found) else "step (version of the weights, or what the objective reports)", fontsize=8)
    ax.set_ylabel(goal.metric)
    ax.grid(visible=True, linewidth=0.5, alpha=0.4)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title("curves of arms, means over seeds", fontsize=9)
