"""Learning curves of one or several runs, as a picture.

The one idea: each metric has a panel, and each group of runs that differ only in their seed has a colour. One run is a line.
Several seeds are thin lines with their mean over them, so that luck can be told from a better setting.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shoal.jobs.methods import METHODS
from shoal.jobs.settings import ranges
from shoal.protocol.errors import UserError
from shoal.runs.choosing import brief
from shoal.runs.metrics import own
from shoal.runs.rundir import Config, RunDir
from shoal.runs.targets import figures, writable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

PANELS = {
    "accuracy": "held-out accuracy (share of examples)",
    "eval/accuracy": "accuracy on clients (share of examples)",
    "return_mean": "return (mean of the last 100 episodes)",
    "eval/return_mean": "return of greedy episodes (mean)",
    "loss": "training loss",
    "held_out_loss": "held-out loss",
    "eval/loss": "loss on clients",
    "quantile_error": "largest error of a quantile (bound)",
}
LOGARITHMIC = ("quantile_error",)
FLAT = ("count",)  # an answer, of analytics, that no version changes
MOST = 3  # panels of metrics in PANELS, and as many of the user's own metrics
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")  # Okabe and Ito: safe for all eyes
LETTERS = 72  # of a label, that a line as wide as a panel has room for
FEW = 30  # a curve of fewer points than this shows each point


@dataclass(frozen=True)
class Curves:
    """The curves of one run, with one value for each row of metrics.jsonl. x: environment steps if the run counts any, else
    versions. A missing value is NaN. seconds: of the run, if they are of virtual time; None: they are not."""

    name: str
    config: Config
    x: Floats
    counts_steps: bool
    metrics: dict[str, Floats]
    seconds: Floats | None = None


Groups = list[tuple[str, list[Curves]]]


def read(run: RunDir) -> Curves:
    """The curves of a run. Raises UserError for a run that has not written a metric yet."""
    rows = run.rows()
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    if not names:
        raise UserError(f"{run.path} has no metrics yet: metrics.jsonl is empty; let the run make its first step")
    counts_steps = any(row["steps"] for row in rows)
    x = np.array([row["steps" if counts_steps else "version"] for row in rows], dtype=np.float64)
    columns = {name: np.array([row["metrics"].get(name) for row in rows], dtype=np.float64) for name in names}  # None is NaN
    config = run.config()
    virtual = config.settings.get("clock") == "virtual"
    seconds = np.array([row["seconds"] for row in rows], dtype=np.float64) if virtual else None
    return Curves(run.name, config, x, counts_steps, columns, seconds)


def plot(runs: Sequence[RunDir], out: Path | str | None = None) -> Path:
    """Draw the runs in one picture and return its path: `out`; else the learning.png of one run, or a new ./learning.png,
    ./learning-2.png ... of several. An older picture at `out` or of the one run is replaced.

    Raises UserError for a run without metrics, for a suffix that is no picture's, and if matplotlib is not installed.
    """
    path = writable(out or (runs[0].picture if len(runs) == 1 else _new_picture()))
    figure([read(run) for run in runs]).savefig(path, dpi=120)
    return path


def _new_picture() -> Path:
    names = itertools.chain(["learning.png"], (f"learning-{number}.png" for number in itertools.count(2)))
    return next(path for path in map(Path, names) if not path.exists())


def groups(curves: Iterable[Curves]) -> Groups:
    """Groups of runs that differ only in their seed, each with its label: the run's name, or the job and the settings in which
    the group differs from other groups."""
    alike: dict[str, list[Curves]] = {}
    for each in curves:
        alike.setdefault(repr((each.config.job, sorted(each.config.settings.items()))), []).append(each)
    found = list(alike.values())
    settings = [runs[0].config.settings for runs in found]
    own = {key for each in settings for key in each if len({repr(other.get(key)) for other in settings}) > 1}
    if "method" in own:
        return [(_label(runs, sorted(_of_method(runs[0].config.settings, settings, own))), runs) for runs in found]
    return [(_label(runs, sorted(own)), runs) for runs in found]


def _of_method(its: Mapping[str, Any], all_settings: Iterable[Mapping[str, Any]], own: Iterable[str]) -> Iterator[str]:
    """The settings that tell a group from groups with other methods: the method, and what is not the method's default or
    differs between groups of the method."""
    kind = METHODS.get(its.get("method", ""))
    defaults = {name: found.default for name, found in ranges(kind).items()} if kind else {}
    alike = [other for other in all_settings if other.get("method") == its.get("method")]
    for key in own:
        differs = len({repr(other.get(key)) for other in alike}) > 1
        if key in its and (key == "method" or differs or (key in defaults and its[key] != defaults[key])):
            yield key


def mean_of(curves: Sequence[Curves], metric: str) -> tuple[Floats, Floats]:
    """(x, mean over runs), where all runs that have this metric have values; between points a run's value is interpolated
    linearly."""
    known = [(x, y) for x, y in (_known(each, metric) for each in curves) if len(x)]
    if not known:
        return np.empty(0), np.empty(0)
    grid = np.unique(np.concatenate([x for x, _ in known]))
    grid = grid[(grid >= max(x[0] for x, _ in known)) & (grid <= min(x[-1] for x, _ in known))]
    return grid, np.mean([np.interp(grid, x, y) for x, y in known], axis=0)


def panels(curves: Sequence[Curves]) -> list[str]:
    """The metrics to draw: at most MOST of PANELS and MOST of the user's own; if there are none, the first two by name."""
    there = sorted({name for each in curves for name, y in each.metrics.items() if np.isfinite(y).any()})
    losses = [name for name in there if name.endswith("loss")]
    known = [name for name in PANELS if name in there][:MOST]
    return [*known, *[name for name in own(there) if name not in FLAT][:MOST]] or (losses or there)[:2]


def _label(runs: list[Curves], own: list[str]) -> str:
    if len(runs) == 1 and not own:
        return runs[0].name
    sets = ", ".join(f"{key}={runs[0].config.settings.get(key)}" for key in own)
    seeds = _numbers([each.config.seed for each in runs])
    luck = f" (mean of seeds {seeds})" if len(runs) > 1 else ""
    return f"{brief(runs[0].config.job)}{' ' + sets if sets else ''}{luck}"


def _numbers(seeds: Sequence[int]) -> str:
    """Seeds as words: the first and the last, if they follow one another."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(str(seed) for seed in seeds)


def wrapped(label: str, panels: int) -> str:
    """A label in lines that a picture of so many panels has room for."""
    return textwrap.fill(label, LETTERS * panels)


def _known(curves: Curves, metric: str) -> tuple[Floats, Floats]:
    y = curves.metrics.get(metric, np.full_like(curves.x, math.nan))
    there = np.isfinite(y)
    return curves.x[there], y[there]


def figure(curves: Sequence[Curves]) -> Figure:
    """The picture, by virtual time if all runs are of virtual time. Raises UserError without matplotlib."""
    timed = [replace(each, x=each.seconds) for each in curves if each.seconds is not None]
    curves = timed if len(timed) == len(curves) else [replace(each, seconds=None) for each in curves]
    grouped, names = groups(curves), panels(curves)
    many = max(len(names), 1)
    lines = sum(wrapped(label, many).count("\n") + 1 for label, _ in grouped)
    picture = figures()(figsize=(6.0 * many, 3.9 + 0.22 * lines), layout="constrained")
    axes = picture.subplots(1, many, sharex=True, squeeze=False)[0]
    for ax, metric in zip(axes, names, strict=False):
        _panel(ax, grouped, metric)
    told = {wrapped(label, many): line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    picture.legend(told.values(), told.keys(), loc="outside upper left", frameon=False, fontsize=9)
    return picture


def _spread(ax: Axes, curves: Curves, metric: str, colour: str, band: bool) -> None:
    """The distribution over clients, if the run has told it: the worst tenth; with `band`, the first to the ninth decile."""
    (x, low), (_, high) = (_known(curves, f"{metric}/{decile}") for decile in ("p10", "p90"))
    if len(x) and len(low) == len(high):
        if band:
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0, label="clients, first to ninth decile")
        ax.plot(*_known(curves, f"{metric}/worst_tenth"), color=colour, linestyle=":", linewidth=1.2, label="worst tenth")


def _panel(ax: Axes, grouped: Groups, metric: str) -> None:
    from matplotlib.ticker import EngFormatter

    for (label, runs), colour in zip(grouped, itertools.cycle(COLOURS), strict=False):
        alone = len(runs) == 1
        for each in runs:
            x, y = _known(each, metric)
            style: dict[str, Any] = {"linewidth": 1.6, "label": label} if alone else {"linewidth": 0.8, "alpha": 0.45}
            ax.plot(x, y, color=colour, marker="." if len(x) < FEW else None, **style)
            if alone:
                _spread(ax, each, metric, colour, band=len(grouped) == 1)
        if not alone:
            ax.plot(*mean_of(runs, metric), color=colour, linewidth=2.0, label=label)
    steps = {each.counts_steps for _, runs in grouped for each in runs}
    words = {True: "environment steps", False: "round (version of the weights)"}
    timed = any(each.seconds is not None for _, runs in grouped for each in runs)
    if metric in LOGARITHMIC:
        ax.set_yscale("log")
    ax.set_xlabel("virtual seconds" if timed else " or ".join(words[each] for each in sorted(steps)))
    ax.set_ylabel(PANELS.get(metric, metric))
    if steps == {True}:
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.grid(visible=True, linewidth=0.5, alpha=0.4)
    ax.spines[["top", "right"]].set_visible(False)
