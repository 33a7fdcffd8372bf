"""`shoal.sweep`: many trials of a job, or of a user's own objective, carried out to the end.

The one idea: a sweep that goes on after a kill begins as a new one does, and then takes up from its folder what earlier lives
came to.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

from shoal.coordinator.keeping.disk import Lock
from shoal.jobs.job import Job
from shoal.protocol import draws
from shoal.runs.choosing import refuse_within_find
from shoal.runs.hiring import nursery
from shoal.runs.rundir import Config, finite
from shoal.runs.socketdir import socket_folder
from shoal.runs.stopping import Stopper
from shoal.runs.theirs import in_one_line
from shoal.runs.threads import cores, few_threads
from shoal.sweeps.desk import Desk, Trial
from shoal.sweeps.folder import SweepDir
from shoal.sweeps.found import Sweep, keep_best
from shoal.sweeps.line import listening
from shoal.sweeps.planning import Objective, Place, Planned, at_least_one, end_of, goal_of, plan
from shoal.sweeps.population import Population
from shoal.sweeps.race import Race
from shoal.sweeps.study import Study, check_parts, needed, quiet, rules_of
from shoal.sweeps.telling import Telling
from shoal.sweeps.work import does_job, does_objective, life_of, prepared

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler


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
            "trials": at_least_one("trials", trials),
            "timeout": 0.0 if timeout is None else timeout,
            "sampler": sampler if isinstance(sampler, str) else type(sampler).__name__,
            "pruner": pruner if isinstance(pruner, str) else type(pruner).__name__,
            "goal": goal,
            "actors": at_least_one("actors", actors) or cores(),
            "seed": seed,
            "device": device,
        }
        planned = plan(job, {**(settings or {}), **(space or {})}, folder, goes_on=True, objects=objects, **asked)
        shown = sys.stderr.isatty() if show is None else show
        found = carried_out(planned, planned.telling(sys.stderr if shown else None))
    if found.signal == signal.SIGTERM:
        signal.raise_signal(signal.SIGTERM)  # now it does what it does to the program
    return found


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
        population, end = _population(planned)
        study = _study(planned, population)
        judge, generation = study.judge if study.prunes else None, population.rules.population if population else 0
        desk = Desk(planned.space.seeds, asked.actors, planned.arms, study.ask, judge, generation)
        _taken_up(planned, study, desk, population)
        until = time.monotonic() + asked.timeout if asked.timeout else math.inf
        tell = telling.begun(found, desk)
        address = str(home / "sweep")
        race = Race(
            desk, study, planned.goal, folder, pool, door, address, is_job, time.monotonic, until, tell, population, end
        )
        try:
            found.reason = race.live(lambda: stopper.reason)
            found.signal = stopper.number
        finally:
            telling.over()
    keep_best(found)
    return found


def _population(planned: Planned) -> tuple[Population | None, str]:
    """The population that the sampler is, and the setting that ends a run; None and "" for another sampler."""
    rules = None if planned.sampler is not None else rules_of(planned.asked.sampler)
    if rules is None or not isinstance(planned.what, Job):
        return None, ""
    end = end_of(planned.what, planned.space)
    return Population(rules, planned.space.axes, planned.asked.seed, planned.goal, end), planned.what.method.end


def _study(planned: Planned, population: Population | None) -> Study:
    asked, space = planned.asked, planned.space
    grid: Callable[[int], Mapping[str, Any]] | None = population.settings if population else None
    if asked.sampler == "grid":
        grid = space.at
        if asked.pruner.partition(":")[0] != "none":
            # Whoever types a list types it in order: each arm would be better than all before it, and none would be pruned.
            order = draws.draw(asked.seed, "grid").sample(range(space.size), space.size)
            grid = lambda arm: space.at(order[arm])  # noqa: E731
    sampler, pruner = planned.sampler or asked.sampler, planned.pruner or asked.pruner
    return Study(sampler, pruner, planned.goal, asked.seed, space.axes, grid, planned.folder.journal_file, "sweep")


def _taken_up(planned: Planned, study: Study, desk: Desk, population: Population | None) -> None:
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
            if population is not None:
                population.over(arm, over[arm]["params"], over[arm]["value"])
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
