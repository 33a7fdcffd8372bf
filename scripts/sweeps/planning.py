"""The plan of a sweep: what was asked for, checked, with a folder that says it.

The one idea: all that can be wrong in a sweep's words is told in one line here, before the sweep has a folder and a process.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from shoal.jobs.catalog import INLINE, built_in, named, recalled
from shoal.jobs.job import Job
from shoal.jobs.settings import Range, nearest
from shoal.protocol.errors import UserError, signed
from shoal.runs.choosing import absolute, chosen, place_of
from shoal.runs.launch import device_of, try_out
from shoal.runs.metrics import OURS
from shoal.runs.rundir import Config, RunDir, finite
from shoal.runs.signing import sign
from shoal.runs.threads import few_threads
from shoal.sweeps.arms import Goal
from shoal.sweeps.folder import SAME, Asked, SweepDir
from shoal.sweeps.space import Space, check, space_of
from shoal.sweeps.study import PRUNERS, SAMPLERS, made, rules_of
from shoal.sweeps.telling import Telling

Place = str | Path
Objective = Callable[[Any], Any]
VALUE = "value"  # the metric of an objective: what it returns


@dataclass(frozen=True)
class Planned:
    """A sweep that can begin. objective: the user's own function, or the job. named: True if another process finds it by its
    name. sampler, pruner: objects of Optuna's in place of the names in `asked`, or None."""

    asked: Asked
    what: Job | Objective
    space: Space
    goal: Goal
    folder: SweepDir
    named: bool
    sampler: Any = None
    pruner: Any = None

    @property
    def arms(self) -> float:
        """Number of arms in all; infinite if only time ends the sweep."""
        by_trials = self.asked.trials // len(self.space.seeds) if self.asked.trials else math.inf
        return min(by_trials, self.space.size) if self.asked.sampler == "grid" else by_trials

    def telling(self, stream: TextIO | None) -> Telling:
        """The display of this sweep on a stream; None tells nothing."""
        return Telling(stream, self.arms * len(self.space.seeds))


def plan(
    job: Job | Objective | Place,
    given: Mapping[str, Any],
    folder: Place | None,
    *,
    goes_on: bool = False,
    objects: Mapping[str, Any] | None = None,
    **asked: Any,
) -> Planned:
    """The sweep that is asked for, checked, with its folder. given: settings and axes by name. goes_on: True if `folder` may
    hold the same sweep. Raises UserError before the sweep has a folder."""
    if not isinstance(given, Mapping):
        raise UserError(f"space is {signed(given)}: expected name -> values; {{'lr': [0.01, 0.1]}}, say")
    what, name, is_named, base = _what(job)
    objects = objects or {}
    asked["seed"] = base.get("seed", 0) if asked["seed"] is None else asked["seed"]
    found = replace(Asked(**asked), job=name) if isinstance(what, Job) else replace(Asked(**asked), objective=name)
    Config(name, seed=found.seed, actors=found.actors, device=found.device).check("shoal.sweep")
    if not isinstance(found.timeout, int | float) or not 0 <= found.timeout < math.inf:
        raise UserError(f"timeout={found.timeout!r}: must be a number of seconds from 0 (0: no limit)")
    if isinstance(what, Job):
        space = space_of(given, _options(what, given.get("method")), found.seed)
    else:
        space = space_of(given, None, found.seed)
    found = _sampled(_populated(found, space, what, objects), space, isinstance(what, Job), objects)
    if isinstance(what, Job):
        check(space, what, found.sampler == "grid")
        what = what.configured(space.fixed or {}, found.seed)
        with few_threads():
            try_out(what)
            goal = _goal(found.goal, what)
        device_of(found.device)
    else:
        goal = goal_of(found.goal or "min", of_job=False)
    settings = _plain(what.plain()) if isinstance(what, Job) else {}
    found = replace(found, goal=str(goal), space=space.plain(), settings=settings)
    where = _folder(found, folder, goes_on)
    return Planned(found, what, space, goal, where, is_named, **objects)


def _what(job: Any) -> tuple[Job | Objective, str, bool, Mapping[str, Any]]:
    """The job or objective, its name, True if the name finds it in any process, and the settings that a TOML file holds."""
    if isinstance(job, str | os.PathLike) and not str(job).endswith(".toml"):
        name = absolute(os.fspath(job))
        what = built_in(name) or named(name)
    elif isinstance(job, str | os.PathLike):
        its, config, _ = chosen(job, {})
        return its, config.job, True, {"seed": config.seed}
    else:
        what, (name, anywhere) = job, place_of(job)
        if not isinstance(job, Job) and not callable(job):
            raise UserError(f"{signed(job)}: expected a job, or a function of a trial; shoal.sweep('digits', ...), say")
        return what, name, anywhere, {"seed": job.seed} if isinstance(job, Job) else {}
    if not isinstance(what, Job) and not callable(what):
        raise UserError(f"{name} is of type {type(what).__name__}: expected a job, or a function of a trial")
    return what, name, True, {}


def _options(job: Job, method: Any) -> Mapping[str, Any]:
    """The settings of a job, with those of all methods that a sweep tries."""
    found = {"method": job_range(job), **job.options()}
    for name in method.split(",") if isinstance(method, str) else method if isinstance(method, list | tuple) else ():
        found |= job.configured({"method": name}).options()
    return found


def job_range(job: Job) -> Any:
    return Range("how the weights are learned", job.method.name, choices=tuple(job.fitting()), own=True)


def _sampled(asked: Asked, space: Space, is_job: bool, objects: Mapping[str, Any]) -> Asked:
    """Return the settings of the sweep with its sampler, pruner and number of trials filled in. Raises UserError."""
    sampler = asked.sampler or ("grid" if space.size and not asked.trials and (space.axes or is_job) else "tpe")
    pruner = asked.pruner or "none"
    if "sampler" not in objects:
        made("sampler", sampler)
    if "pruner" not in objects:
        made("pruner", pruner)
    seeds = len(space.seeds)
    if is_job and not space.axes and seeds < 2:
        raise UserError(
            "nothing to sweep: give a setting several values (lr=0.01,0.1 or lr=1e-4..1e-1~log), or seeds (seed=0..9)"
        )
    if sampler == "grid" and not space.size:
        axis = next(axis for axis in space.axes if not axis.listed())
        raise UserError(
            f"{axis.name}={axis.plain()}: a grid has no place for a range of any numbers; list them, or --sampler tpe"
        )
    if sampler == "grid" and not space.axes and not is_job:
        raise UserError("sampler=grid: an objective's grid is empty without axes; lr=0.01,0.1, say, or --sampler tpe")
    if sampler != "grid" and not (asked.trials or asked.timeout):
        raise UserError(f"sampler={sampler}: it never ends by itself; say --trials N or --timeout 2h")
    if asked.trials and asked.trials < seeds:
        raise UserError(f"trials={asked.trials}: each arm has {seeds} seeds, so give trials={seeds} at least")
    return replace(asked, sampler=sampler, pruner=pruner)


def _populated(asked: Asked, space: Space, what: Job | Objective, objects: Mapping[str, Any]) -> Asked:
    """Return the settings of the sweep, with the number of trials filled in if the sampler is a population. Raises
    UserError."""
    rules = None if "sampler" in objects else rules_of(asked.sampler)
    if rules is None:
        return asked
    if not isinstance(what, Job):
        raise UserError(f"sampler={asked.sampler}: an objective has no snapshots to begin from; sweep a job")
    if "pruner" in objects or asked.pruner not in ("", "none"):
        raise UserError(f"sampler={asked.sampler}: a population replaces its last arms by itself; leave the pruner out")
    if asked.trials:
        all_of = f"population x generations x seeds, {rules.population * rules.generations * len(space.seeds):,} here"
        raise UserError(f"trials={asked.trials}: a population has {all_of}; leave the number out")
    if not space.axes:
        raise UserError(f"sampler={asked.sampler}: nothing to change: give a setting several values; lr=1e-4..1e-1~log, say")
    for name in ("method", what.method.end):
        if name in (axis.name for axis in space.axes):
            raise UserError(f"{name}: a trial that goes on from another's snapshot keeps its {name}; give it one value")
    if (end := end_of(what, space)) < rules.generations:
        parts = f"{rules.generations} generations need {rules.generations} at least"
        raise UserError(f"{what.method.end}={end}: {parts}; or give --sampler pbt:generations=N")
    return replace(asked, trials=rules.population * rules.generations * len(space.seeds))


def end_of(job: Job, space: Space) -> int:
    """The end of a job's run, in rounds or environment steps. Raises UserError if the job's method has no such setting."""
    end = (space.fixed or {}).get(job.method.end, job.plain().get(job.method.end))
    if not isinstance(end, int):
        raise UserError(f"sampler=pbt: method={job.method.name} has no setting {job.method.end!r} that says when a run ends")
    return end


def goal_of(text: str, of_job: bool = True) -> Goal:
    """The goal that a text like "max:accuracy" says. Raises UserError."""
    way, sign, metric = text.partition(":")
    if way not in ("max", "min") or (of_job and not metric):
        form = "max:METRIC or min:METRIC; max:accuracy, say" if of_job else "max or min"
        raise UserError(f"goal={text}: must be {form}")
    return Goal(metric if sign and metric else VALUE, way == "max")


def _goal(text: str, job: Job) -> Goal:
    """The goal of a sweep over a job. Raises UserError for a metric that its runs cannot have."""
    goal = goal_of(text) if text else None
    has, open_ended = _metrics(job)
    if goal is None:
        if job.problem.kind == "environment":
            return Goal("return_mean", True)
        first = next((name for name in ("accuracy", "held_out_loss") if name in has), "loss")
        return Goal(first, first == "accuracy")
    if not open_ended and goal.metric not in has and not goal.metric.startswith("eval/"):
        raise UserError(f"goal={text}: this job has no metric {goal.metric!r}: {nearest(goal.metric, has)}")
    return goal


def _metrics(job: Job) -> tuple[list[str], bool]:
    """The metrics that runs of a job may have, and True if there may be others, of a user's own worker or aggregator."""
    if job.problem.kind == "environment":
        other = {"train_accuracy", "update_norm", "held_out_examples"}
        return ["return_mean", "loss", *sorted(OURS - other)], not type(job.method).__module__.startswith("shoal.")
    central = job.central()
    held_out = list(central(job.problem.first(job.seed)[0])) if central else []
    own = getattr(job.problem, "worker", None) is not None or not type(job.method).__module__.startswith("shoal.")
    return [*held_out, "loss", "train_accuracy", "update_norm", "examples"], own


def at_least_one(name: str, given: int | None) -> int:
    if given is None:
        return 0
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise UserError(f"{name}={given!r}: must be a whole number from 1")
    return given


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        name: list(value) if isinstance(value, tuple) else value for name, value in settings.items() if not callable(value)
    }
    return {name: value for name, value in found.items() if value is not None}


def _folder(asked: Asked, folder: Place | None, goes_on: bool) -> SweepDir:
    """A new folder for a sweep; or `folder`, if it holds a sweep that was asked for in the same words and may go on."""
    if folder is not None and goes_on and SweepDir.holds(folder):
        there = SweepDir(folder)
        before = there.asked()
        for name in SAME:
            if _same(getattr(before, name)) != _same(getattr(asked, name)):
                was, now = getattr(before, name), getattr(asked, name)
                raise UserError(f"folder={folder}: its sweep has {name}={was}, and this one {name}={now}; name another folder")
        there.write(asked)
        return there
    where = SweepDir.create(asked.name.removeprefix(INLINE), datetime.now(), folder)
    where.write(asked)
    sign(RunDir(where.path), asked.name)
    return where


def _same(value: Any) -> str:
    return json.dumps(finite(value), sort_keys=True)


def again(folder: Place, changes: Mapping[str, str], actors: int | None) -> Planned:
    """The sweep in a folder, to go on. changes: `trials` may grow. Raises UserError."""
    where = SweepDir(folder)
    asked = where.asked()
    for name, value in changes.items():
        if name != "trials" or not value.isdigit() or int(value) < asked.trials:
            raise UserError(f"{name}={value}: a sweep that goes on keeps what it was asked for; only trials may grow")
        asked = replace(asked, trials=int(value))
    asked = replace(asked, actors=actors) if actors else asked
    for name, known in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        if (text := getattr(asked, name)).partition(":")[0] not in known:
            raise UserError(f"{where.path}: its {name} is an object of {text}: go on from Python, with shoal.sweep(folder=...)")
    if asked.name.startswith(INLINE):
        raise UserError(f"{asked.name.removeprefix(INLINE)} stands in no file: go on from Python, with shoal.sweep(folder=...)")
    if asked.job:
        job = recalled(asked.job, asked.settings, asked.seed)
        space, what = space_of(asked.space, _options(job, asked.space.get("method")), asked.seed), job
    else:
        space, what = space_of(asked.space, None, asked.seed), named(asked.objective)
    where.write(asked)
    return Planned(asked, what, space, goal_of(asked.goal), where, True)
