"""The work of `shoal evaluate` and `shoal export`: metrics of a run's newest weights, and files with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.actors import close
from shoal.coordinator.tally import add
from shoal.protocol.draws import kept_globals
from shoal.protocol.errors import UserError
from shoal.protocol.exact import unfinite
from shoal.protocol.work import Task
from shoal.runs.export import export as written
from shoal.runs.export import of_this_model, untrained
from shoal.runs.run import Place, Run, opened
from shoal.runs.threads import few, few_threads


@few_threads()
def evaluate(run: Run | Place, episodes: int = 100) -> dict[str, float]:
    """Metrics of a run's newest weights: on held-out data if the job has any; else from the job's worker, over `episodes`
    greedy episodes in fresh environments, or over all clients."""
    run = opened(run)
    job, snapshot = run.job, run.snapshot()
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
    job = job.configured({"eval_episodes": episodes} if plays else {})
    job.prepare()
    worker = job.worker()
    few()
    job.problem.close()  # the worker holds what it needs
    clients = range(1 if plays else settings.get("clients", 1))
    totals: dict[str, tuple[float, float]] = {}
    samples: dict[str, list[float]] = {}
    try:
        for client in clients:
            with kept_globals(), of_this_model(run.folder):
                work = worker.run(snapshot.weights, client, Task(snapshot.version, client, (client,), "evaluate"))
            add(totals, work.totals)
            for name, values in work.samples.items():
                samples.setdefault(name, []).extend(values)
    finally:
        close(worker)
    return version | _of_samples(samples) | {name: total / count for name, (total, count) in totals.items() if count}


def _of_samples(samples: Mapping[str, list[float]]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, values in samples.items():
        metrics |= {f"{name}_mean": sum(values) / len(values), f"{name}_min": min(values), f"{name}_max": max(values)}
    return metrics | ({"episodes": float(len(next(iter(samples.values()))))} if samples else {})


def export(run: Run | Place, to: Place) -> Path:
    """Write a run's weights to a new .safetensors file, or its model with them to a new .pt2 file, a torch.export program."""
    run = opened(run)
    job, snapshot = run.job, run.snapshot()

    def model() -> tuple[Any, tuple[Any, ...]]:
        return untrained(job), job.problem.example(job.method, job.seed)

    try:
        module = untrained(job)
    except UserError:  # no torch model, or one that cannot be made here: the weights are whole without it
        module = None
    about = {"job": job.name, "version": str(snapshot.version), "run": run.dir.name}
    return written(snapshot.weights, to, model, about, (lambda: module) if module is not None else None)
