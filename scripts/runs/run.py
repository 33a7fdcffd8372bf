"""A run as its user holds it in Python: metrics, history, weights, model, and the way on.

The one idea: the folder holds everything, and is read when something is asked for. So a run that was loaded, a run that has
just ended and a run that is under way are looked at in the same way.
"""

from __future__ import annotations

import html
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shoal.coordinator.keeping.store import Snapshot, newest
from shoal.coordinator.reports import Observer
from shoal.jobs.catalog import INLINE, recalled
from shoal.jobs.job import Job
from shoal.protocol.errors import UserError, signed
from shoal.protocol.layout import Bundle
from shoal.runs.export import load as load_weights
from shoal.runs.export import untrained
from shoal.runs.metrics import FIRST, own
from shoal.runs.rundir import Config, RunDir
from shoal.runs.signing import unsigned
from shoal.runs.watching import StopWhen, Watch

if TYPE_CHECKING:
    from torch import nn

    from shoal.runs.playing import Player

Place = str | Path


class History(list[dict[str, Any]]):
    """The rows of metrics.jsonl, a row a version: version, seconds, steps, contributions, actors, lag, metrics (a dict);
    and, if a lag is above 0, lags, pairs of a lag in versions and the number of contributions that had it."""

    def frame(self) -> Any:
        """A pandas DataFrame, a column a metric. Raises UserError if pandas is not installed."""
        try:
            from pandas import DataFrame
        except ModuleNotFoundError:
            raise UserError("history.frame() needs pandas, which is not installed: pip install pandas") from None
        flat = [{**row["metrics"], **{name: value for name, value in row.items() if name != "metrics"}} for row in self]
        return DataFrame(flat)


class Run:
    """A run: `shoal.run(...)` returns one, `shoal.load(RUN_DIR)` opens one.

    folder: the folder of the run. reason: "done", or why the run stopped before its goal; "" if it was loaded. named: True if
    config.toml names the same job for every process; a job that was made in Python is found again only if it is handed to
    `load`.
    """

    def __init__(self, folder: Path, job: Job | None = None, named: bool = True) -> None:
        self.folder = folder
        self.reason = ""
        self.named = named
        self._job = job
        self._snapshot: Snapshot | None = None

    @property
    def dir(self) -> RunDir:
        return RunDir(self.folder)

    @property
    def config(self) -> Config:
        """The settings that repeat the run: job, seed, actors, transport, device, settings."""
        return self.dir.config()

    @property
    def job(self) -> Job:
        """The job with the settings of the run. Raises UserError if the job was made in Python in another process."""
        if self._job is None:
            config = self.config
            self._job = recalled(config.job, config.settings, config.seed)
        return self._job

    @property
    def job_name(self) -> str:
        """The job's name as a person reads it."""
        return self.config.job.removeprefix(INLINE)

    @property
    def history(self) -> History:
        """Return the rows of metrics.jsonl that the run has written so far."""
        return History(self.dir.rows())

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of each metric. Plain names are held out where there is held-out data (`accuracy`)."""
        found: dict[str, float] = {}
        for row in self.dir.rows():
            found |= row["metrics"]
        return found

    @property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json (docs/running.md); empty before the run has ended once."""
        file = self.dir.summary_file
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return found

    @property
    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """Name -> array, from the newest snapshot; bfloat16 as float32. Raises UserError before there is a snapshot."""
        bundle = self.snapshot().weights
        return {place.name: _plain(bundle, place.name, place.dtype) for place in bundle.layout.places}

    def model(self) -> nn.Module:
        """The job's torch module with the run's weights, on the CPU, in evaluation mode. Raises UserError if it has none."""
        module = untrained(self.job).eval()
        load_weights(module, self.snapshot().weights)
        return module

    def policy(self, greedy: bool = True, seed: int = 0, best: bool = False) -> Player:
        """The policy with the run's weights, which plays: `action = policy.act(observation)`; `policy.reset()` where an episode
        begins. greedy: False explores as training does at this version, from `seed`. best: the weights that keep_best has kept.
        Raises UserError for a job without an environment."""
        from shoal.runs.playing import player

        return player(self, greedy, seed, best)

    def video(self, to: Place = "", best: bool = False) -> Path:
        """Write a video of one greedy episode of the run's weights, and return its path. to: a new .mp4 file (with
        `shoal[video]`) or .gif file; "": a file in the run's folder. best: the weights that keep_best has kept."""
        from shoal.runs.playing import video

        return video(self, to, best)

    def elo(self) -> list[tuple[int, float]]:
        """The table of a run with `opponents`: (version, Elo rating) of the versions that are kept, the strongest first."""
        from shoal.aggregators.around.selfplay import elo

        kept = newest(self.folder, lambda text: None)
        return list(elo(kept.state)) if kept is not None else []

    def snapshot(self) -> Snapshot:
        """The newest whole snapshot. Raises UserError before there is a snapshot."""
        if self._snapshot is not None:
            return self._snapshot
        found = newest(self.folder, lambda text: print(f"shoal: {text}", file=sys.stderr))
        if found is None:
            raise UserError(f"{self.folder} has no whole snapshot yet: let it run on with `shoal resume {self.folder}`")
        return found

    def resume(
        self,
        *,
        settings: Mapping[str, Any] | None = None,
        actors: int | None = None,
        evaluators: int | None = None,
        bind: str = "",
        observers: Iterable[Observer] = (),
        stop_when: StopWhen | None = None,
        track: str | Sequence[str] = (),
        show: bool | None = None,
    ) -> Run:
        """Go on from the newest snapshot, to the run's end or to a later one: `run.resume(settings={"rounds": 200})`.

        Returns the longer run. A run that has reached its end is returned as it is. The other arguments are those of
        `shoal.run`.
        """
        from shoal.runs.running import resume

        return resume(self, settings or {}, actors, evaluators, bind, Watch(observers, stop_when), track, show)

    def ended(self, snapshot: Snapshot, reason: str) -> None:
        """Keep the last weights of a run that has just ended, whatever becomes of its folder."""
        self._snapshot, self.reason = snapshot, reason

    def _state(self) -> str:
        rows = self.dir.rows()
        version, steps = (rows[-1]["version"], rows[-1]["steps"]) if rows else (0, 0)
        return f"{steps:,} environment steps" if steps else f"{version:,} versions"

    def _shown(self) -> dict[str, str]:
        metrics = self.metrics
        return {name: f"{metrics[name]:.4g}" for name in (*FIRST, *own(metrics)) if metrics.get(name) is not None}

    def __repr__(self) -> str:
        metrics = "".join(f"{name} {value}, " for name, value in self._shown().items())
        return f"<Run {self.job_name}: {metrics}{self._state()}, in {self.folder}>"

    def _repr_html_(self) -> str:
        rows = {"job": self.job_name, "state": f"{self._state()} {self.reason}", **self._shown(), "folder": str(self.folder)}
        cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows.items())
        return f"<table>{cells}</table>"


def _plain(bundle: Bundle, name: str, dtype: str) -> npt.NDArray[Any]:
    array = bundle[name]
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == "bf16" else array


def load(folder: Place, job: Job | None = None) -> Run:
    """The run in `folder`, whether it has ended or not. job: the run's job, if it was made in Python and stands in no file.

    Raises UserError if there is no run.
    """
    found = opened(folder).dir
    if job is not None:
        config = found.config()
        job = job.configured(config.settings, config.seed)
    return Run(found.path.absolute(), job, named=job is None)


def opened(run: Run | Place) -> Run:
    """The run that is given, or the run in a folder, whose path stays relative if it was typed so."""
    if isinstance(run, Run):
        return run
    if not isinstance(run, str | os.PathLike):
        raise UserError(f"{signed(run)}: expected a run, of shoal.run or shoal.load, or its folder")
    return Run(RunDir.open(run).path)


def trusted(folder: Run | Place, trust: bool) -> Run:
    """The run, or the run in a folder. Raises UserError if the folder's config.toml names code, which would be imported, and
    the folder is not signed by this user (signing.py), unless the user trusts it: the folder may be a stranger's."""
    run = opened(folder)
    job = run.dir.config().job
    if not trust and (why := unsigned(run.dir, job)):
        raise UserError(f"{run.dir.config_file} names {job}, whose code would be run, and {why}: give --trust if you know it")
    return run


def plot(*runs: Run | Place, out: Place | None = None) -> Path:
    """Draw learning curves over each other, and return the picture's path.

    out: a .png, .svg or .pdf file; None is learning.png in the folder of one run, or a new ./learning.png
    or ./learning-N.png for several runs. Runs that differ in their seed alone get a mean.
    """
    from shoal.runs.plot import plot as drawn

    if not runs:
        raise UserError("plot: no run is given; shoal.plot(run), say")
    return drawn([opened(run).dir for run in runs], out)
