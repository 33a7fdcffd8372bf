"""The best weights of a reinforcement-learning run, and the return at which it ends.

The one idea: both look at the rows of the run as an observer does. The best weights lie in the run's folder as a snapshot of
their own, `best/`, that a worse version never replaces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from shoal.coordinator.keeping.disk import DiskTrouble
from shoal.coordinator.keeping.store import Snapshot, Store, newest
from shoal.coordinator.reports import Progress, Report
from shoal.coordinator.tally import WINDOW
from shoal.jobs.job import Job
from shoal.jobs.problems.first_weights import BEST
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Metrics

EVERY = 5.0  # seconds between two files, at least: a run in its best time improves at every version
MOST = 256 << 20  # bytes of weights that are held for evaluations that are out
FEWEST = 4  # versions that are held even if they are larger than that
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

    An evaluation speaks of the version that played (`Progress.played`). It may come many versions later, so the weights of
    every version that one may speak of are held until then, if MOST bytes are enough for them. An evaluation of a version
    whose weights are not held any more counts for nothing; so do evaluations of several versions that come in one row.
    """

    def __init__(self, job: Job, folder: Path, clock: Callable[[], float]) -> None:
        self.on: bool = getattr(job.method, "keep_best", False)
        self.reach: int = getattr(job.method, "max_lag", 1)  # versions that a task given now may lie behind the newest
        self.metric, self.folder, self.clock = measure(job), folder / BEST, clock
        self.newest: Newest | None = None
        self.evaluating: Callable[[], Sequence[int]] = tuple
        before = newest(self.folder, lambda text: None) if self.on else None
        self.value = before.counters.get(self.metric) if before else None
        self.waits: Snapshot | None = None
        self.store: Store | None = None
        self.due = 0.0
        self.held: dict[int, Bundle] = {}  # version -> its weights, versions rising
        self._oldest = 0  # version that had to be held when the last row was told

    def follow(self, newest: Newest, evaluating: Callable[[], Sequence[int]]) -> None:
        """Follow a learner from the version that it begins with. newest: gives its version and weights. evaluating: gives the
        oldest version that may play, for each evaluation that is out."""
        self.newest, self.evaluating = newest, evaluating
        self._hold(*newest())

    def stepped(self, version: int, metrics: Metrics, progress: Progress) -> None:
        if not self.on or self.newest is None:
            return
        its, weights = self.newest()
        self._hold(its, weights)
        found = value_of(self.metric, metrics)
        if found is not None and (self.value is None or found > self.value):
            its = its if self.metric == TRAINING else progress.played
            if its in self.held:
                self.value, self.waits = found, Snapshot(its, self.held[its], {}, {self.metric: found})
        self._drop()
        if self.waits and self.clock() >= self.due:
            self.write()

    def _hold(self, version: int, weights: Bundle) -> None:
        if self.on:
            self.held[version] = weights

    def _drop(self) -> None:
        """Drop the versions that no evaluation plays any more. An evaluation that came since the last row is out no more, so
        what had to be held then is held still. If the rest is too large, drop from its middle: an evaluation that is out plays
        one of the oldest, and the next one will play one of the newest."""
        newest = next(reversed(self.held))
        if self.metric == TRAINING:
            oldest = newest
        else:
            now = min([*self.evaluating(), newest - self.reach])
            oldest, self._oldest = min(now, self._oldest), now
        for version in [one for one in self.held if one < oldest]:
            del self.held[version]
        while len(self.held) > FEWEST and len(self.held) * self.held[newest].data.nbytes > MOST:
            del self.held[list(self.held)[len(self.held) // 2]]

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
    if (found := newest(folder / BEST, lambda text: None)) is None:
        raise UserError(
            f"{folder} keeps no best weights: a run does so with keep_best=true, after {WINDOW} episodes or an evaluation"
        )
    return found
