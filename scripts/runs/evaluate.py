"""The work of `shoal evaluate` and `shoal export`: metrics of a run's newest weights, and files with them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.actors import close, work_of
from shoal.coordinator.keeping.store import Snapshot, newest
from shoal.coordinator.tally import FEW, add, spread
from shoal.jobs.methods.acting import Acting
from shoal.protocol.draws import kept_globals
from shoal.protocol.errors import UserError, printable, signed
from shoal.protocol.exact import unfinite
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task
from shoal.runs.best import best_of
from shoal.runs.export import export as written
from shoal.runs.export import of_this_model, untrained
from shoal.runs.run import Place, Run, opened
from shoal.runs.theirs import told
from shoal.runs.threads import few, few_threads

if TYPE_CHECKING:
    from torch import nn

    from shoal.jobs.job import Job


@few_threads()
def evaluate(run: Run | Place, episodes: int = 100, best: bool = False) -> dict[str, float]:
    """Metrics of a run's newest weights, or (best=True) of those that keep_best has kept: on held-out data if the job has any;
    else from the job's worker, over `episodes` greedy episodes in fresh environments, or over all clients. If each client has
    environments of its own kind, the episodes are divided evenly among the clients, and each plays one at least."""
    run = opened(run)
    if not isinstance(episodes, int) or episodes < 1:
        raise UserError(f"episodes={signed(episodes)}: must be a whole number from 1; episodes=100, say")
    job, snapshot = run.job, best_of(run.folder) if best else run.snapshot()
    version = {"version": float(snapshot.version)}
    if name := unfinite(snapshot.weights):
        raise UserError(f"{run.folder}: version {snapshot.version} is not finite: {name!r} holds NaN or an infinity")
    if (central := job.central()) is not None:
        few()
        run.dir.check_held_out(job.problem.held_out_digest(job.method, job.seed))
        with of_this_model(run.folder):
            return {**version, **central(snapshot.weights)}
    settings = job.plain()
    plays = "eval_episodes" in settings
    alike = plays and not getattr(job.problem, "differs", False)
    clients = range(1 if alike else settings.get("clients", 1))
    job = job.configured({"eval_episodes": -(-episodes // len(clients))} if plays else {})
    job.problem.adopt(run.dir.findings())
    job.prepare()
    worker = job.worker()
    few()
    job.problem.close()  # the worker holds what it needs
    for line in job.problem.conditions():
        print(f"shoal: {line}", file=sys.stderr, flush=True)
    totals: dict[str, tuple[float, float]] = {}
    samples: dict[str, list[float]] = {}
    apiece: dict[str, list[float]] = {}
    brief = _briefs(run, job, snapshot)
    try:
        for client in clients:
            with kept_globals(), of_this_model(run.folder):
                task = Task(snapshot.version, client, (client,), "evaluate", counts=False)
                work = work_of(worker, snapshot.weights, client, task, brief(task))
            add(totals, work.totals)
            for name, (total, count) in work.totals.items():
                apiece.setdefault(name, []).extend([total / count] * (count > 0))
            for name, values in work.samples.items():
                samples.setdefault(name, []).extend(values)
    finally:
        close(worker)
    means = {name: total / count for name, (total, count) in totals.items() if count}
    return version | _of_samples(samples) | means | _spreads(apiece)


def _spreads(apiece: Mapping[str, list[float]]) -> dict[str, float]:
    """The distribution of each metric over clients, if there are enough."""
    many = {name: values for name, values in apiece.items() if len(values) >= FEW}
    return {f"{name}/{where}": value for name, values in many.items() for where, value in spread(name, values).items()}


def _briefs(run: Run, job: Job, snapshot: Snapshot) -> Callable[[Task], Bundle | None]:
    """The function that gives a task's brief, from what the run remembers of its clients."""
    layout = snapshot.weights.layout
    lives = job.method.briefs(job.problem, layout) if isinstance(job.method, Acting) else ()  # for training tasks alone
    if len(lives) == len(job.briefs(layout)):
        return lambda task: None
    kept = snapshot if snapshot.state else newest(run.folder, lambda text: None)
    aggregator: Any = job.aggregator("cpu")
    if hasattr(aggregator, "settle"):
        aggregator.settle(run.dir.path / "clients")
    aggregator.load(snapshot.weights, kept.state if kept is not None else {})
    brief: Callable[[Task], Bundle | None] = aggregator.brief
    return brief


def _of_samples(samples: Mapping[str, list[float]]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, values in samples.items():
        metrics |= {f"{name}_mean": sum(values) / len(values), f"{name}_min": min(values), f"{name}_max": max(values)}
    return metrics | ({"episodes": float(len(next(iter(samples.values()))))} if samples else {})


def export(run: Run | Place, to: Place, best: bool = False) -> Path:
    """Write a run's newest weights, or (best=True) those that keep_best has kept, to a new .safetensors file, or its model with
    them to a new .pt2 file, a torch.export program, or to a new .onnx file, which needs onnxscript.

    If the job's model cannot be made here, a .safetensors file holds the run's arrays by name, and a line says so."""
    run = opened(run)
    job, snapshot = run.job, best_of(run.folder) if best else run.snapshot()
    made = _module(job, run.config.job)

    def model() -> tuple[Any, tuple[Any, ...]]:
        if isinstance(made, UserError):
            raise made
        return made, job.problem.example(job.method, job.seed)

    if isinstance(made, _CannotBeMadeError) and Path(to).suffix == ".safetensors":
        print(f"shoal: {made}: the file holds the run's arrays by name, and may not load with strict=True", file=sys.stderr)
    about = {"job": job.name, "version": str(snapshot.version), "run": run.dir.name}
    return written(snapshot.weights, to, model, about, None if isinstance(made, UserError) else lambda: made)


class _CannotBeMadeError(UserError):
    """The user's own function or environment raised where the job's model is made."""


def _module(job: Job, name: str) -> nn.Module | UserError:
    """The job's module, or why there is none. name: the job's."""
    try:
        return untrained(job)
    except UserError as none:
        return none
    except Exception as raised:  # noqa: BLE001  the weights are whole, whatever the user's function or environment raises
        why = told(raised, name) or f"{type(raised).__name__}: {printable(str(raised), 200)}"
        return _CannotBeMadeError(f"the job's model cannot be made here: {why}")
