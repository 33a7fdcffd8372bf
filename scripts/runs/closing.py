"""The greedy episodes that a reinforcement-learning run plays at its end, by its last weights.

The one idea: an environment may hang or end its process, so a process of the nursery plays the episodes, like those of
training, by the snapshot in the run's folder. The coordinator waits for the file that this process writes, for a bounded time.
A run without a nursery (the plain loop) plays them where it has trained.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from shoal.actors import close, work_of
from shoal.actors.pool import Pool
from shoal.coordinator.keeping.store import newest
from shoal.coordinator.reports import Report
from shoal.jobs.job import Job
from shoal.protocol.draws import kept_globals
from shoal.protocol.errors import printable
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Metrics, Task
from shoal.runs import theirs
from shoal.runs.rundir import finite, replaced

FILE = "closing.json"  # in the run's folder, for as long as the coordinator waits for it
LEAST = 30.0  # seconds that the episodes may take, however short the run was
SHARE = 0.25  # of the run's seconds that they may take, if that is longer
LOOK = 0.05  # seconds between two looks at whether they are played


def plays(job: Job, reason: str) -> bool:
    """True if a run of this job that ended for this reason plays episodes at its end: eval_episodes is above 0, and nobody is
    waiting for the run's end, as after a Ctrl-C."""
    return job.ours and getattr(job.method, "eval_episodes", 0) > 0 and (reason == "done" or "stop_when" in reason)


def played(job: Job, version: int, weights: Bundle) -> Metrics:
    """Play eval_episodes greedy episodes in fresh environments, here. The seeds are those of `shoal evaluate`."""
    worker = job.worker()
    try:
        with kept_globals():
            work = work_of(worker, weights, 0, Task(version, 0, (0,), "evaluate", counts=False), None)
    finally:
        close(worker)
    means = {f"eval/{name}_mean": sum(values) / len(values) for name, values in work.samples.items() if values}
    return {**means, "eval/episodes": float(len(work.samples.get("return", ())))}


def played_in(job: Job, folder: Path) -> int:
    """The life of the process that plays: by the newest snapshot in `folder`, to FILE there. Returns its exit code, 0."""
    try:
        snapshot = newest(folder, lambda text: None)
        assert snapshot is not None  # the coordinator has just written it
        said = {"metrics": finite(played(job, snapshot.version, snapshot.weights))}
    except Exception as raised:  # noqa: BLE001  an environment is the user's code and may raise anything at all
        said = {"fault": theirs.told(raised) or f"{type(raised).__name__}: {printable(str(raised), 200)}"}
    replaced(folder / FILE, json.dumps(said))
    return 0


class Closing:
    """The end of one run. folder: the run's. seconds: that the run took. interrupted: gives a reason to stop at once, or "".
    report: is told why there are no episodes, if there are none."""

    def __init__(
        self,
        job: Job,
        folder: Path,
        pool: Pool | None,
        seconds: float,
        interrupted: Callable[[], str],
        report: Callable[[Report], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.job, self.folder, self.pool, self.report, self.clock = job, folder.absolute(), pool, report, clock
        self.interrupted, self.said = interrupted, interrupted()
        self.most = max(LEAST, SHARE * seconds)

    def metrics(self, version: int, weights: Bundle) -> Metrics:
        """The figures of the episodes, named eval/...; none if they could not be played, and then a line says why."""
        if self.pool is None:
            try:
                return played(self.job, version, weights)
            except Exception as raised:  # noqa: BLE001  the run is whole, whatever the user's environment raises
                return self._none(theirs.told(raised) or f"{type(raised).__name__}: {printable(str(raised), 200)}")
        (self.folder / FILE).unlink(missing_ok=True)
        if why := self._asked(self.pool):
            return self._none(why)
        found = json.loads((self.folder / FILE).read_text(encoding="utf-8"))
        (self.folder / FILE).unlink()
        if "metrics" not in found:
            return self._none(found["fault"])
        metrics: Metrics = found["metrics"]
        return metrics

    def _asked(self, pool: Pool) -> str:
        """Have a new process of the nursery play, and wait for its file. Returns why there is none; "" if there is one."""
        pool.ended()
        before, until = set(pool.alive), self.clock() + self.most
        pool.grow(1, {"plays": str(self.folder)})
        mine, gone = set[int](), set[int]()
        while not (self.folder / FILE).exists():
            if pool.fault or (mine and mine <= gone):
                return pool.fault or "the process that played them has ended"
            late = self.clock() > until
            if late or self.interrupted() != self.said:
                for pid in mine - gone:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                return f"they took longer than {self.most:.0f} s" if late else "interrupted"
            select.select([pool], [], [], LOOK)
            gone |= pool.ended().keys()
            mine |= (pool.alive | gone) - before
        return ""

    def _none(self, why: str) -> Metrics:
        fix = f"shoal evaluate {self.folder.name} plays them, and eval_episodes=0 leaves them out"
        self.report(Report("closing", f"no greedy episodes at the end: {why}; {fix}", "warning"))
        return {}
