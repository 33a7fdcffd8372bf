"""The life of a process that does trials, one after the other.

The one idea: a trial of a job is `launch` with the plain loop, in a run's folder of its own, so it has the bits of
`--actors 0`. An observer says what the metric is after each step, and a trial that is pruned ends its run in good order.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from shoal.actors.pool import Life
from shoal.coordinator.deciding.plans import AFRESH
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.coordinator.keeping.store import newest
from shoal.coordinator.reports import Progress, Report
from shoal.jobs.catalog import recalled
from shoal.jobs.job import Job
from shoal.jobs.methods.acting import Acting
from shoal.protocol import draws, heap
from shoal.protocol.work import Metrics
from shoal.runs import theirs
from shoal.runs.launch import Launch, launch, ready, try_out
from shoal.runs.rundir import Config, RunDir
from shoal.runs.signing import sign
from shoal.runs.threads import asked_for, few_for_good
from shoal.sweeps.line import GoneError, Line

Does: TypeAlias = Callable[[Line, Mapping[str, Any]], dict[str, Any]]
"""The function that does a trial: from the trial's settings to the message at its end (state, value, why, step, seconds)."""

LEAVES = 0  # exit code of a process whose sweep is over or gone


def life_of(does: Does) -> Life:
    """The life of a trial's process. It ends with its sweep, or with the signal SIGTERM between two trials."""

    def live(arguments: Mapping[str, Any]) -> int:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the sweep answers a Ctrl-C
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        heap.keep()
        few_for_good()
        try:
            line = Line.to(str(arguments["address"]))
            line.say({"pid": os.getpid()})
            while True:
                told = line.hear()
                line.say({"ended": told["trial"], **does(line, told)})
        except GoneError:
            return LEAVES

    return live


def does_job(job: Job, config: Config, named: bool) -> Does:
    """Return the function that does trials of a job with these fixed settings. config: of a trial, but for seed and
    settings."""

    def does(line: Line, told: Mapping[str, Any]) -> dict[str, Any]:
        stopped = threading.Event()
        before = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
        try:
            return _run(line, told, job, config, named, stopped)
        finally:
            signal.signal(signal.SIGTERM, before)

    return does


def _run(
    line: Line, told: Mapping[str, Any], job: Job, config: Config, named: bool, stopped: threading.Event
) -> dict[str, Any]:
    run = RunDir(Path(told["folder"]))
    watch = Watch(line, told["trial"], told["metric"], told["waits"], stopped)
    try:
        its = job.configured({**told["params"], **told.get("end", {})}, told["seed"])
        config = replace(config, seed=its.seed, settings=its.plain(), groups=its.groups(), threads=asked_for())
        origin = RunDir(Path(told["from"])) if "from" in told else None
        began = _count(origin)
        begun = _begun(run, config, watch.say if goes_on(its) else None, origin)
        if not begun:
            try_out(its)
        options = Launch(its, config, run, resume=begun, named=named)
        with ready(options) as made:
            end = launch(made, watch, lambda: watch.reason or ("stopped with its sweep" if stopped.is_set() else ""))
    except GoneError:
        raise
    except Exception as raised:
        if (why := theirs.told(raised, config.job)) is None:
            raise
        return {"state": "failed", "why": why}
    found = {"began": began} if "end" in told else {}
    found |= {"step": end.summary["steps"] or end.version, "version": end.version, "seconds": end.summary["seconds"]}
    found |= {"weights_sha256": end.summary["weights_sha256"], "value": end.summary["metrics"].get(told["metric"])}
    if watch.reason:
        return found | {"state": "pruned", "why": watch.reason}
    if end.failed:
        return found | {"state": "failed", "why": end.reason}
    if end.reason != "done":  # the sweep stops, and goes on with this run in its next life
        raise GoneError
    if found["value"] is None and begun:  # too short a part for an episode to end, say: the history has it
        seen = [row["metrics"][told["metric"]] for row in run.rows() if row["metrics"].get(told["metric"]) is not None]
        found["value"] = seen[-1] if seen else None
    if found["value"] is None:
        return found | {"state": "failed", "metrics": sorted(end.summary["metrics"]), "why": f"no metric {told['metric']!r}"}
    return found | {"state": "complete"}


def goes_on(job: Job) -> bool:
    """True if a run of this job that is stopped and resumed in the plain loop has the bits of one that never stopped.

    Tasks of a stream begin anew, environments too whose state cannot be told; workers of a user's own may remember things."""
    ours = getattr(job.problem, "worker", None) is None and type(job.method).__module__.startswith("shoal.")
    whole = job.problem.kind == "supervised" or (
        isinstance(job.method, Acting) and job.method.continues and job.method.life(job.problem) > 0
    )
    return ours and whole and isinstance(job.plan(AFRESH), Rounds)


def _count(origin: RunDir | None) -> int:
    """The environment steps, or versions if it counts none, of the run from which a trial begins; 0 for none."""
    snapshot = newest(origin.path, lambda text: None) if origin is not None else None
    return int(snapshot.counters.get("steps", 0)) or snapshot.version if snapshot is not None else 0


def _begun(run: RunDir, config: Config, say: Callable[[int, Any], object] | None, origin: RunDir | None) -> bool:
    """True if the run goes on: that of an earlier process, after its reports were said again, or one that is copied from its
    origin; else its folder is new. say: None if a run of an earlier process is always made anew."""
    snapshot = newest(run.path, lambda text: None) if say is not None and run.config_file.is_file() else None
    if say is not None and snapshot is not None and snapshot.version:
        for row in run.rows():
            if row["version"] <= snapshot.version:
                say(row["version"], row["metrics"])
        return True
    if run.path.exists():
        shutil.rmtree(run.path)
    run.path.mkdir(parents=True)
    if origin is not None:
        _copied(origin, run)
    run.write_config(config)  # last: a folder with a config is whole
    sign(run, config.job)
    return origin is not None


def _copied(origin: RunDir, run: RunDir) -> None:
    """Copy what another run goes on from: the newest snapshot, and the history up to it."""
    file = max(origin.checkpoints.glob("*.safetensors"))
    run.checkpoints.mkdir()
    shutil.copyfile(file, run.checkpoints / file.name)
    for name in ("clients", "replay"):  # what a method remembers of clients and in its replay, beyond what the snapshot holds
        if (beside := origin.path / name).is_dir():
            shutil.copytree(beside, run.path / name)
    shutil.copyfile(origin.metrics_file, run.metrics_file)


class Watch:
    """An observer that says the metric to the sweep. reason: why the run is to end here; "" as long as it goes on."""

    def __init__(self, line: Line, trial: int, metric: str, waits: bool, stopped: threading.Event) -> None:
        self.line, self.trial, self.metric, self.waits, self.stopped = line, trial, metric, waits, stopped
        self.reason = ""

    def say(self, version: int, metrics: Mapping[str, Any]) -> None:
        value = metrics.get(self.metric)
        if value is None or not math.isfinite(value) or self.reason or self.stopped.is_set():
            return
        try:
            self.line.say({"said": self.trial, "step": version, "value": float(value)})
            if self.waits and not self.line.hear()["go"]:
                self.reason = f"pruned at version {version}"
        except GoneError:
            self.stopped.set()

    def stepped(self, version: int, metrics: Metrics, progress: Progress) -> None:
        self.say(version, metrics)

    def moved(self, progress: Progress) -> None: ...

    def report(self, report: Report) -> None: ...


def does_objective(objective: Callable[[Any], Any], name: str) -> Does:
    """Return the function that does trials of a user's own function of a trial."""

    def does(line: Line, told: Mapping[str, Any]) -> dict[str, Any]:
        import optuna

        from shoal.sweeps.proxy import Trial

        trial = Trial(line, told)
        draws.set_globals(int(told["seed"]), "objective", int(told["arm"]))
        try:
            value = objective(trial)
        except optuna.TrialPruned:
            return {"state": "pruned", "why": f"pruned at step {trial.step}", "step": trial.step}
        except GoneError:
            raise
        except Exception as raised:  # noqa: BLE001  a fault of this trial, which its row tells
            why = theirs.told(raised, name) or f"{type(raised).__name__}: {raised}"
            return {"state": "failed", "why": why, "step": trial.step}
        try:
            number = float(value)
        except (TypeError, ValueError):
            return {"state": "failed", "why": f"it returned {value!r:.100}: expected a number", "step": trial.step}
        return {"state": "complete", "value": number, "step": trial.step}

    return does


def maker(kind: str, name: str, settings: Mapping[str, Any], config: Mapping[str, Any]) -> Does:
    """The function that does trials, in a process that has only names. Raises UserError."""
    if kind == "job":
        job = recalled(name, settings, int(config["seed"]))
        prepared(job)
        return does_job(job, Config(name, actors=0, device=str(config["device"])), True)
    import shoal.sweeps.proxy  # noqa: F401  so that copies of this process have it
    from shoal.jobs.catalog import named

    return does_objective(named(name), name)


def prepared(job: Job) -> None:
    """Make the data that all trials share, before processes are forked."""
    job.prepare()
    job.check_parts()
