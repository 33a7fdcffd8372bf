"""`shoal.sweep`: many trials of a job, or of a user's own objective, and what came of them.

The one idea: a sweep's folder says what was asked for and what became of each trial, so a sweep that has just ended, one that
was loaded and one that goes on after a kill are the same.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from shoal.coordinator.keeping.disk import Lock
from shoal.jobs.catalog import INLINE, built_in, named, recalled
from shoal.jobs.job import Job
from shoal.jobs.settings import Range, nearest
from shoal.protocol import draws
from shoal.protocol.errors import UserError, signed
from shoal.runs.choosing import absolute, chosen, place_of, refuse_within_find
from shoal.runs.hiring import nursery
from shoal.runs.launch import device_of, try_out
from shoal.runs.metrics import OURS
from shoal.runs.rundir import Config, RunDir, finite, replaced
from shoal.runs.signing import sign
from shoal.runs.socketdir import socket_folder
from shoal.runs.stopping import Stopper
from shoal.runs.theirs import in_one_line
from shoal.runs.threads import cores, few_threads
from shoal.sweeps.arms import Arm, Goal, best
from shoal.sweeps.desk import Desk, Trial
from shoal.sweeps.folder import SAME, Asked, SweepDir
from shoal.sweeps.line import listening
from shoal.sweeps.race import Race
from shoal.sweeps.space import Space, check, space_of
from shoal.sweeps.study import PRUNERS, SAMPLERS, Study, check_parts, made, needed, quiet
from shoal.sweeps.table import table
from shoal.sweeps.telling import Telling
from shoal.sweeps.work import does_job, does_objective, life_of, prepared

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

    from shoal.runs.run import Run

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


class Sweep:
    """A sweep: `shoal.sweep(...)` returns one, `shoal.Sweep(FOLDER)` opens one.

    reason: "done", or why the sweep stopped before; "" if it was opened. Raises UserError if the folder holds no sweep.
    """

    def __init__(self, folder: Place) -> None:
        if not SweepDir.holds(folder):
            raise UserError(f"{folder} holds no sweep (no sweep.toml); start one: shoal sweep digits lr=0.01,0.1 seed=0..4")
        self.folder = Path(folder)
        self.dir = SweepDir(self.folder)
        self.reason, self.signal = "", 0

    @property
    def asked(self) -> Asked:
        return self.dir.asked()

    @property
    def goal(self) -> Goal:
        return goal_of(self.asked.goal)

    @property
    def trials(self) -> list[dict[str, Any]]:
        """A row a trial: trial, arm, seed, state, value, params, step, and the run's folder under `run` (trials.jsonl)."""
        return self.dir.rows()

    @property
    def arms(self) -> list[Arm]:
        """The arms, in the order in which they were asked for."""
        return arms_of(self.dir.rows(), len(space_of(self.asked.space).seeds))

    @property
    def best(self) -> Arm | None:
        """The complete arm of the best mean: its params, mean and interval. None if no arm is complete."""
        return best(self.arms, self.goal)

    @property
    def run(self) -> Run:
        """The run of the best arm under its first seed. Raises UserError if there is none."""
        from shoal.runs.run import load

        if (arm := self.best) is None or not self.asked.job:
            raise UserError(
                f"{self.folder} has no best run: {'no arm is complete' if arm is None else 'it swept an objective'}"
            )
        return load(self.dir.trial(_first(self.trials, arm)).path)

    def table(self, most: int = 20) -> str:
        """The arms as a table, best first."""
        return table(self.arms, self.goal, most)

    def plot(self, out: Place | None = None) -> Path:
        """Draw the sweep: parallel coordinates, and the curves of arms. Returns the picture's path, sweep.png in its folder."""
        from shoal.sweeps.picture import plot

        return plot(self.dir, out)

    def summary(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        arms, asked, arm = self.arms, self.asked, self.best
        states = [row["state"] for row in self.trials]
        return {
            "job": asked.name,
            "goal": str(self.goal),
            "sampler": asked.sampler,
            "pruner": asked.pruner,
            "trials": {state: states.count(state) for state in ("complete", "pruned", "failed", "running")},
            "steps": sum(each.steps for each in arms),
            "best": None if arm is None else told_of(arm),
            "arms": [told_of(each) for each in arms],
            "folder": str(self.folder),
            "reason": self.reason,
        }

    def __repr__(self) -> str:
        arm = self.best
        found = f"best {self.goal.metric} {arm.mean:.4g}" if arm else "no arm is complete"
        return f"<Sweep of {self.asked.name.removeprefix(INLINE)}: {len(self.trials)} trials, {found}, in {self.folder}>"


def sweep(
    job: Job | Objective | Place,
    space: Mapping[str, Any] | None = None,
    *,
    trials: int | None = None,
    timeout: float | None = None,
    sampler: str | BaseSampler = "",
    pruner: str | BasePruner = "",
    goal: str = "",
    actors: int | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    folder: Place | None = None,
    show: bool | None = None,
) -> Sweep:
    """Try many settings of a job, or call an objective many times with a trial, and return the sweep.

    job: a job or its name as `shoal.run` takes it; or a function of a trial that returns a number, as Optuna's
    `study.optimize` takes it, or its name, "train.py:objective". space: name -> list of values, range ("1e-4..1e-1~log",
    "1..9"), or one value; "seed" holds the seeds of each arm. trials: at most so many in all (a grid needs no number). timeout:
    seconds after which none begins. sampler: "grid", "tpe", "random", "cmaes", "gp", "qmc" ("" is grid if the space is finite
    and no number of trials is given, else tpe), or a sampler of Optuna's. pruner: "none" (default), "asha", "median",
    "hyperband", "percentile", "wilcoxon", or a pruner of Optuna's; "asha:reduction_factor=3" sets its arguments. goal:
    "max:METRIC" or "min:METRIC"; "max" or "min" for an objective (default: min). actors: trials at a time, each in a process
    of its own (default: the cores). seed: of the sampler, and of the trials if the space names no seeds. settings: of the job,
    for all trials. device: as for `shoal.run`.
    folder: of the sweep; None is a new sweeps/NAME-DATE-TIME; the folder of a sweep that was asked for in the same words goes
    on. show: True shows progress on the screen; None shows it on a terminal.

    Ctrl-C ends the trials under way in good order; a SIGTERM does so too, and then what it does to the
    program. Raises UserError for a mistake in what was asked for.
    """
    refuse_within_find()
    with in_one_line():
        needed()
        check_parts(sampler, pruner)
        objects = {n: part for n, part in (("sampler", sampler), ("pruner", pruner)) if not isinstance(part, str)}
        asked = {
            "trials": _whole("trials", trials),
            "timeout": 0.0 if timeout is None else timeout,
            "sampler": sampler if isinstance(sampler, str) else type(sampler).__name__,
            "pruner": pruner if isinstance(pruner, str) else type(pruner).__name__,
            "goal": goal,
            "actors": _whole("actors", actors) or cores(),
            "seed": seed,
            "device": device,
        }
        planned = plan(job, {**(settings or {}), **(space or {})}, folder, goes_on=True, objects=objects, **asked)
        shown = sys.stderr.isatty() if show is None else show
        found = carried_out(planned, planned.telling(sys.stderr if shown else None))
    if found.signal == signal.SIGTERM:
        signal.raise_signal(signal.SIGTERM)  # now it does what it does to the program
    return found


# What is asked for


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
    found = _sampled(found, space, isinstance(what, Job), objects)
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
    """What is asked for, with its sampler, pruner and number of trials. Raises UserError."""
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


def _whole(name: str, given: int | None) -> int:
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


# What is done


def carried_out(planned: Planned, telling: Telling) -> Sweep:
    """Run a sweep to its end, and return it."""
    asked, folder = planned.asked, planned.folder
    found = Sweep(folder.path.absolute())
    is_job = isinstance(planned.what, Job)
    with ExitStack() as stack:
        stack.enter_context(few_threads())
        if isinstance(planned.what, Job):
            prepared(planned.what)
            config = Config(asked.job, actors=0, device=asked.device)
            does = does_job(planned.what, config, planned.named)
        else:
            import shoal.sweeps.proxy  # noqa: F401  so that copies of this process have it

            does = does_objective(planned.what, asked.objective)
        settings = finite(planned.what.plain()) if isinstance(planned.what, Job) else {}
        word = ["job" if is_job else "objective", asked.name, settings, {"seed": asked.seed, "device": asked.device}]
        pool = nursery(life_of(does), planned.named, "shoal.sweeps.fresh", json.dumps(word))
        stack.callback(pool.close)
        stack.enter_context(closing(Lock(folder.path)))  # after the fork: a copy of the lock would outlive this process
        home = stack.enter_context(socket_folder())
        door = stack.enter_context(listening(home))
        stack.enter_context(quiet())
        stopper = stack.enter_context(Stopper())
        study = _study(planned)
        desk = Desk(planned.space.seeds, asked.actors, planned.arms, study.ask, study.judge if study.prunes else None)
        _taken_up(planned, study, desk)
        until = time.monotonic() + asked.timeout if asked.timeout else math.inf
        tell = telling.begun(found, desk)
        address = str(home / "sweep")
        race = Race(desk, study, planned.goal, folder, pool, door, address, is_job, time.monotonic, until, tell)
        try:
            found.reason = race.live(lambda: stopper.reason)
            found.signal = stopper.number
        finally:
            telling.over()
    _best(found)
    return found


def _study(planned: Planned) -> Study:
    asked, space = planned.asked, planned.space
    grid: Callable[[int], Mapping[str, Any]] | None = None
    if asked.sampler == "grid":
        grid = space.at
        if asked.pruner.partition(":")[0] != "none":
            # Whoever types a list types it in order: each arm would be better than all before it, and none would be pruned.
            order = draws.draw(asked.seed, "grid").sample(range(space.size), space.size)
            grid = lambda arm: space.at(order[arm])  # noqa: E731
    sampler, pruner = planned.sampler or asked.sampler, planned.pruner or asked.pruner
    return Study(sampler, pruner, planned.goal, asked.seed, space.axes, grid, planned.folder.journal_file, "sweep")


def _taken_up(planned: Planned, study: Study, desk: Desk) -> None:
    """Take up what earlier lives of the sweep came to: what is over stays over, and what was running is tried again."""
    folder = planned.folder
    rows: dict[int, list[dict[str, Any]]] = {}
    for row in folder.rows():
        rows.setdefault(row["arm"], []).append(row)
    over = {row["arm"]: row for row in folder.arms()}
    for arm in range(max([*rows, *over], default=-1) + 1):
        its = {row["seed"]: _trial(row, folder) for row in rows.get(arm, ()) if row["state"] != "running"}
        if told := arm in over:
            study.known(arm, over[arm]["state"], over[arm]["value"], over[arm]["params"], over[arm])
        else:
            known = max((row["params"] for row in rows.get(arm, ())), key=len, default=None)
            study.ask(arm, known or None)
        desk.known(arm, its, told)


def _trial(row: Mapping[str, Any], folder: SweepDir) -> Trial:
    metric = goal_of(folder.asked().goal).metric
    if "run" in row:
        history = folder.trial(row["trial"]).rows()
        values = {each["version"]: each["metrics"][metric] for each in history if each["metrics"].get(metric) is not None}
    else:
        values = {int(step): value for step, value in row.get("values", ())}
    trial = Trial(row["trial"], row["arm"], row["seed"], row["state"], row["attempt"], values, row["value"])
    trial.why = row["why"]
    return trial


def _best(found: Sweep) -> None:
    """Write the folder best/: what the best arm is, and the config.toml of its first trial."""
    if (arm := found.best) is None:
        return
    folder = found.dir.best
    folder.mkdir(exist_ok=True)
    replaced(folder / "arm.json", json.dumps(finite(told_of(arm)), indent=2, allow_nan=False) + "\n")
    if found.asked.job:
        config = found.dir.trial(_first(found.trials, arm)).config_file
        shutil.copyfile(config, folder / "config.part")
        (folder / "config.part").replace(folder / "config.toml")


def _first(rows: list[dict[str, Any]], arm: Arm) -> int:
    """The number of an arm's first trial."""
    return int(min(row["trial"] for row in rows if row["arm"] == arm.number))


def arms_of(rows: list[dict[str, Any]], seeds: int) -> list[Arm]:
    """The arms that rows of trials.jsonl tell of, by number. seeds: trials that each has."""
    found: list[Arm] = []
    for number in sorted({row["arm"] for row in rows}):
        its = [row for row in rows if row["arm"] == number]
        states = [row["state"] for row in its] + ["running"] * (seeds - len(its))
        values = {row["seed"]: row["value"] for row in its if row["state"] == "complete"}
        why = next((row["why"] for row in its if row["state"] == "failed"), "")
        counts = {state: states.count(state) for state in dict.fromkeys(states)}
        params = max((row["params"] for row in its), key=len)
        found.append(Arm(number, params, values, counts, sum(row["step"] for row in its), why))
    return found


def told_of(arm: Arm) -> dict[str, Any]:
    """An arm as plain data."""
    return {
        "arm": arm.number,
        "params": dict(arm.params),
        "state": arm.state,
        "mean": arm.mean if arm.values else None,
        "interval": arm.interval,
        "seeds": len(arm.values),
        "steps": arm.steps,
        "why": arm.why,
    }
