"""The best weights of a reinforcement-learning run, and the return at which it ends.

The one idea: both look at the rows of the run as an observer does. The best weights lie in the run's folder as a snapshot of
their own, `best/`, that a worse version never replaces.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shoal.coordinator.keeping.disk import DiskTrouble
from shoal.coordinator.keeping.store import Snapshot, Store, newest
from shoal.coordinator.reports import Progress, Report
from shoal.coordinator.tally import WINDOW
from shoal.jobs.job import Job
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Metrics

FOLDER = "best"
EVERY = 5.0  # seconds between two files, at least: a run in its best time improves at every version
FRESH, TRAINING = "eval/return_mean", "return_mean"

Newest = Callable[[], tuple[int, Bundle]]


def measure(job: Job) -> str:
    """The metric that says how good a version is: of evaluations if there are any, else of the last WINDOW training
    episodes."""
    return FRESH if getattr(job.method, "eval_every", 0) else TRAINING


def value_of(metric: str, metrics: Metrics) -> float | None:
    """The metric's value in a new row; None if the row has none, or a mean of less than WINDOW training episodes."""
    if metric == TRAINING and metrics.get("episodes", 0) < WINDOW:
        return None
    return metrics.get(metric)


class Target:
    """An observer that has a run end at target_return. reason: why the run is to end; "" while it is to go on."""

    def __init__(self, job: Job) -> None:
        self.target: float = getattr(job.method, "target_return", 0.0)
        self.metric, self.reason = measure(job), ""

    def stepped(self, version: int, metrics: Metrics, progress: Progress) -> None:
        found = value_of(self.metric, metrics) if self.target else None
        if found is not None and found >= self.target and not self.reason:
            self.reason = f"{self.metric} is {found:.4g} at version {version}, and target_return={self.target:g}"

    def moved(self, progress: Progress) -> None: ...

    def report(self, report: Report) -> None: ...


class Best:
    """An observer that keeps the weights of the best version in the folder `best` of a run, if keep_best is set.

    An evaluation tells of the version whose turn it was: exactly in rounds, while in a stream the actor that played may have
    held weights that were up to max_lag versions older. newest: gives the learner's version and weights; set when there is a
    learner.
    """

    def __init__(self, job: Job, folder: Path, clock: Callable[[], float]) -> None:
        self.on: bool = getattr(job.method, "keep_best", False)
        self.every: int = getattr(job.method, "eval_every", 0)
        self.metric, self.folder, self.clock = measure(job), folder / FOLDER, clock
        self.newest: Newest | None = None
        before = newest(self.folder, lambda text: None) if self.on else None
        self.value = before.counters.get(self.metric) if before else None
        self.waits: Snapshot | None = None
        self.store: Store | None = None
        self.due = 0.0
        self.repeats: bool = getattr(job.method, "repeats", True)
        self.held: tuple[int, Bundle] | None = None  # of the version whose evaluation comes next
        self.asked, self.awaited = 0, False  # on a stream: the version at which that evaluation was given; it has not come
        self.last = -1

    def stepped(self, version: int, metrics: Metrics, progress: Progress) -> None:
        if not self.on or self.newest is None:
            return
        now = self.newest()
        found = value_of(self.metric, metrics)
        if found is not None and (self.value is None or found > self.value):
            its, weights = now if self.metric == TRAINING or version == self.last or self.held is None else self.held
            self.value, self.waits = found, Snapshot(its, weights, {}, {self.metric: found})
        if self.every and self._turn(version, found is not None):
            self.held = now
        self.last = version
        if self.waits and self.clock() >= self.due:
            self.write()

    def _turn(self, version: int, came: bool) -> bool:
        """Return whether the weights of `version` are evaluated next: in rounds those of a version that eval_every divides. On
        a stream those that are newest eval_every versions after the last evaluation was given, and not before it has come."""
        if self.repeats:
            return self.held is None or version // self.every > self.held[0] // self.every
        self.awaited = self.awaited and not came
        if self.awaited or version < self.asked + self.every:
            return False
        self.asked, self.awaited = version, True
        return True

    def write(self) -> None:
        """Write the best weights, if they are not written yet. If the disk has no room, they wait for the next time."""
        if self.waits is None:
            return
        self.due = self.clock() + EVERY
        try:
            self.store = self.store or Store(self.folder, 1)
            self.store.save(self.waits)
        except DiskTrouble:
            return
        self.waits = None

    def moved(self, progress: Progress) -> None: ...

    def report(self, report: Report) -> None: ...


def best_of(folder: Path) -> Snapshot:
    """The best weights of a run. Raises UserError if none were kept."""
    if (found := newest(folder / FOLDER, lambda text: None)) is None:
        raise UserError(
            f"{folder} keeps no best weights: a run does so with keep_best=true, after {WINDOW} episodes or an evaluation"
        )
    return found
