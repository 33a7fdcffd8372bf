"""What `shoal resume` goes on with: a run's own settings, and perhaps a later end.

The one idea: a run keeps what it was begun with, so that its config.toml still repeats it; only its end can be put off.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace

from shoal.coordinator.keeping.disk import Lock
from shoal.coordinator.keeping.store import newest
from shoal.jobs.job import Job
from shoal.protocol.errors import UserError
from shoal.runs.rundir import Config, RunDir


def resumed(path: str, changes: Sequence[str], actors: int | None) -> tuple[RunDir, Config, Job]:
    """The run, what it is run with, its job. A later end is written into its config.toml. Raises UserError."""
    from shoal.jobs.catalog import recalled
    from shoal.jobs.settings import pairs

    run = RunDir.open(path)
    config = run.config()
    job = recalled(config.job, config.settings, config.seed)
    if changes:
        job = _later(job, pairs(changes))
        with Lock(run.path):
            run.extend(replace(config, settings=job.plain(), groups=job.groups()))
        config = run.config()
    return run, config if actors is None else replace(config, actors=actors), job


def done(run: RunDir, job: Job, as_json: bool) -> str | None:
    """What to say of a run that has reached its end already; None of one that has not."""
    snapshot = newest(run.path, lambda text: print(f"shoal: {text}", file=sys.stderr))
    if snapshot is None or not job.goal().reached(snapshot.version, int(snapshot.counters.get("steps", 0))):
        return None
    if as_json and run.summary_file.is_file():
        return json.dumps(json.loads(run.summary_file.read_text(encoding="utf-8")))
    end = job.method.end
    more = f". To go on: shoal resume {run.path} {end}={2 * job.plain()[end]}, say" if end in job.options() else ""
    return f"{run.path} is done: {job.goal()} are made{more}"


def _later(job: Job, changes: dict[str, str]) -> Job:
    before, end = job.plain(), job.method.end
    for name, value in changes.items():
        if name != end or name not in before:
            grows = f"; only {end} may grow" if end in before else ""
            raise UserError(f"{name}={value}: a run that is resumed keeps its settings{grows}")
    later = job.configured(changes)
    for name in changes:
        if later.plain()[name] < before[name]:
            raise UserError(f"{name}={changes[name]}: allowed is from {before[name]}, which the run was begun with")
    return later
