"""The config and job that `shoal resume` goes on with: the run's own, and perhaps with a later end.

The one idea: a run keeps the settings that it was begun with, so that its config.toml still repeats the run; only its end may
become later.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

from shoal.coordinator.keeping.disk import Lock
from shoal.coordinator.keeping.store import newest
from shoal.jobs.job import Job
from shoal.protocol.errors import UserError
from shoal.runs.rundir import Config, RunDir


def resumed(run: RunDir, job: Job, changes: Mapping[str, Any], **given: int | None) -> tuple[Config, Job]:
    """The config and job that the run goes on with. A later end is written into the run's config.toml. given: actors,
    evaluators; None is what the run was begun with. Raises UserError, also for a number that is none."""
    config = run.config()
    if changes:
        job = _later(job, changes)
        with closing(Lock(run.path)):
            run.extend(replace(config, settings=job.plain(), groups=job.groups()))
        config = run.config()
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    config = replace(config, **chosen)
    config.check("shoal resume")
    return config, job


def is_done(run: RunDir, job: Job) -> bool:
    """True if the run's newest snapshot has reached the job's goal, and the run was not killed before it evaluated that."""
    snapshot = newest(run.path, lambda text: print(f"shoal: {text}", file=sys.stderr))
    if snapshot is None or not job.method.goal().reached(snapshot.version, int(snapshot.counters.get("steps", 0))):
        return False
    return not job.method.due(snapshot.version) or run.has_row(snapshot.version)


def what_next(run: RunDir, job: Job) -> str:
    """The line for a run that is done, with the command that makes it go on."""
    end = job.method.end
    more = f". To go on: shoal resume {run.path} {end}={2 * job.plain()[end]}, say" if end in job.options() else ""
    return f"{run.path} is done: its goal of {job.method.goal()} is reached{more}"


def _later(job: Job, changes: Mapping[str, Any]) -> Job:
    before, end = job.plain(), job.method.end
    for name, value in changes.items():
        if name != end or name not in before:
            grows = f"; only {end} may grow" if end in before else ""
            raise UserError(f"{name}={value}: a run that is resumed keeps its settings{grows}")
    later = job.configured(changes)
    if later.plain()[end] < before[end]:
        raise UserError(f"{end}={changes[end]}: allowed is from {before[end]}, which the run was begun with")
    return later
