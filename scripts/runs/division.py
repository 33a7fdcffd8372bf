"""The division of a job's training data among its clients: a table, plain data, or a picture.

The one idea: a division is a count for each client and class, so the three are made from one small array.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shoal.envs.partition import classes_of
from shoal.jobs.job import Job
from shoal.jobs.problems import Supervised
from shoal.jobs.settings import shown
from shoal.protocol.errors import UserError
from shoal.runs.plot import COLOURS
from shoal.runs.targets import figures, writable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES = 50  # clients that the table lists
BARS = 60  # clients that the picture shows as bars; more are rows of an image
MIX = 6  # classes of a client that the table names


@dataclass(frozen=True)
class Division:
    """The training data by client. job, partition: the job's name and its partition, as a user types it.

    sizes: each client's number of examples, int64 [clients]. held_out: number of held-out examples. classes: the classes in
    the data, in rising order. counts: examples of each client and class, int64 [clients, classes]; None if the labels are no
    classes, and then `classes` is empty. notes: lines about the data that a person is told.
    """

    job: str
    seed: int
    partition: str
    sizes: npt.NDArray[np.int64]
    held_out: int
    classes: tuple[int, ...] = ()
    counts: npt.NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Return the division as plain data, for one JSON object."""
        clients = [{"client": client, "examples": int(size), **self._mix(client)} for client, size in enumerate(self.sizes)]
        return {
            "job": self.job,
            "seed": self.seed,
            "partition": self.partition,
            "clients": len(self.sizes),
            "examples": int(self.sizes.sum()),
            "held_out": self.held_out,
            "classes": list(self.classes) if self.counts is not None else None,
            "by_client": clients,
        }

    def _mix(self, client: int) -> Mapping[str, Any]:
        if self.counts is None:
            return {}
        row = self.counts[client]
        return {"classes": {str(name): int(many) for name, many in zip(self.classes, row, strict=True) if many}}

    def __str__(self) -> str:
        least, middle, most = np.min(self.sizes), np.median(self.sizes), np.max(self.sizes)
        head = [
            f"{self.job}  partition={self.partition}  seed {self.seed}",
            f"{self.sizes.sum():,} examples of {len(self.sizes):,} clients, {self.held_out:,} held out; "
            f"a client has {least:,} to {most:,}, the median is {middle:,.0f}",
        ]
        rows = [("client", "examples", "classes"), *(self._row(client) for client in range(min(len(self.sizes), LINES)))]
        wide = [max(len(row[at]) for row in rows) for at in (0, 1)]
        table = [f"{client:>{wide[0]}}  {examples:>{wide[1]}}  {mix}" for client, examples, mix in rows]
        more = [f"... and {len(self.sizes) - LINES:,} more clients: --json lists them all"] * (len(self.sizes) > LINES)
        return "\n".join([*head, *self.notes, *table, *more])

    def _row(self, client: int) -> tuple[str, str, str]:
        if self.counts is None:
            return str(client), f"{self.sizes[client]:,}", "-"
        row = self.counts[client]
        first = [at for at in np.argsort(-row, kind="stable") if row[at]]
        mix = " ".join(f"{self.classes[at]}:{row[at]}" for at in first[:MIX]) + " ..." * (len(first) > MIX)
        return str(client), f"{self.sizes[client]:,}", f"{len(first)} ({mix})"


def division(job: Job) -> Division:
    """The division of a job's data among the clients that take part. Raises UserError for a job without such data."""
    problem, method = job.problem, job.method
    if not isinstance(problem, Supervised):
        raise UserError(f"job {job.name} has no data that is divided: give a job made by Federated(model, data)")
    population = problem.population(method, job.seed)
    clients = problem.settings(method).clients
    labels = [population.examples(client).y for client in range(clients)]
    sizes = np.array([len(y) for y in labels], np.int64)
    found = [classes_of(y) for y in labels]
    held = 0 if population.held_out is None else len(population.held_out)
    notes, name = tuple(population.notes), shown(problem.partition)
    plain = any(y is None for y in found) or not sizes.sum()
    what = (job.name, job.seed, name, sizes, held)
    if plain:
        return Division(*what, notes=notes)
    together = np.concatenate([np.asarray(y, np.int64) for y in found])
    names, numbers = np.unique(together, return_inverse=True)
    flat = np.repeat(np.arange(clients), sizes) * len(names) + numbers
    counts = np.bincount(flat, minlength=clients * len(names)).reshape(clients, len(names))
    return Division(*what, tuple(names.tolist()), counts, notes)


def draw(found: Division, path: Path | str) -> Path:
    """Draw the division and return the picture's path: clients by class, and how many clients have how many examples. Raises
    UserError for a suffix that is no picture's, and if matplotlib is not installed."""
    into = writable(path, flag="--plot")
    figure = figures()(figsize=(11, 5.5), layout="constrained")
    from matplotlib.ticker import MaxNLocator

    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    if len(found.sizes) <= BARS:
        _bars(left, found)
    else:
        _image(left, found)
    right.hist(found.sizes, bins=min(30, max(1, len(np.unique(found.sizes)))), color=COLOURS[0])
    right.set_xlabel("examples of a client")
    right.set_ylabel("clients")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{found.job}: {found.sizes.sum():,} examples, {len(found.sizes):,} clients, partition={found.partition}")
    figure.savefig(into, dpi=120)
    return into


def _bars(axes: Axes, found: Division) -> None:
    """A bar for each client, of its examples of each class."""
    from matplotlib import colormaps

    clients = np.arange(len(found.sizes))
    counts = found.sizes[:, None] if found.counts is None else found.counts
    names = found.classes or ("examples",)
    colours = colormaps["tab20" if len(names) <= 20 else "turbo"].resampled(len(names))
    start = np.zeros(len(clients), np.int64)
    for at, name in enumerate(names):
        axes.barh(clients, counts[:, at], left=start, color=colours(at), height=0.9, label=str(name))
        start += counts[:, at]
    axes.invert_yaxis()
    axes.set_xlabel("examples")
    axes.set_ylabel("client")
    axes.spines[["top", "right"]].set_visible(False)
    if found.classes and len(names) <= 20:
        axes.legend(title="class", fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def _image(axes: Axes, found: Division) -> None:
    """A row for each client, a column for each class: the class's share of the client's examples."""
    if found.counts is None:
        axes.plot(np.sort(found.sizes)[::-1], color=COLOURS[0])
        axes.set_xlabel("clients, the largest first")
        axes.set_ylabel("examples")
        return
    shares = found.counts / np.maximum(found.sizes, 1)[:, None]
    drawn = axes.imshow(shares, aspect="auto", interpolation="nearest", cmap="viridis", vmin=0, vmax=1)
    names = [str(name) for name in found.classes]
    every = max(1, len(names) // 20)
    axes.set_xticks(range(0, len(names), every), names[::every])
    axes.set_xlabel("class")
    axes.set_ylabel("client")
    axes.figure.colorbar(drawn, ax=axes, label="share of the client's examples")
