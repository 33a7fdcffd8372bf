"""Federated learning as a job: a model, data that stays where it is, a loss.

The one idea: a user gives at most a model, the data and a loss. Every other choice is a setting with the name that the field
of federated learning uses, and has a default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from shoal.actors import Worker, check_runs
from shoal.envs.agents import Parallel
from shoal.envs.making import check_factory
from shoal.envs.spaces import Spaces
from shoal.jobs.job import Job
from shoal.jobs.methods.fedavg import FedAvg
from shoal.jobs.methods.method import Method
from shoal.jobs.parts import Bearing, DeltaChecks, KeepingDeltas
from shoal.jobs.playing import Environments
from shoal.jobs.problems import Calls, Problem, Supervised
from shoal.jobs.wraps import Attack, Bound, Clip, Compress, check_listed
from shoal.protocol.errors import UserError, binds, signed, takes

if TYPE_CHECKING:
    from torch import nn


def Federated(  # noqa: N802  it reads like the type of what it makes
    model: Callable[[], nn.Module] | None = None,
    data: Any = None,
    loss: Callable[[Any, Any], Any] | None = None,
    *,
    method: str | Method | type[Method] = "fedavg",
    metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
    worker: Callable[..., Worker] | None = None,
    weights: Callable[[], Mapping[str, Any]] | None = None,
    env: str | Callable[..., Any] | None = None,
    policy: Callable[[Spaces], nn.Module] | None = None,
    around: Sequence[Any] = (),
    name: str = "federated",
    seed: int = 0,
    **settings: Any,
) -> Job:
    """A federated job: `job = Federated(model=..., data=...)`, run by `shoal.run(job)` or `shoal simulate FILE.py:job`.

    model: () -> nn.Module, or a module, which is copied.
    data: arrays (x, y); a pair (training, held out) of such pairs; an envs.population.Population; or a function, () or of the
    settings, that returns any of these. Each process that needs the data calls the function once.
    loss: (logits, y) -> the mean loss, or one loss for each example. Default: cross entropy.
    metrics: name -> (logits [n, ...], y [n, ...]) -> a number, over a whole evaluation set: the held-out data, or one client's.
    method: a name, or a method of your own (docs/own.md). worker: (settings, population) -> Worker, in place of local SGD.
    around: wraps around the aggregator, innermost first. Further keywords are settings: `shoal jobs digits` lists them.

    If actors are to work without torch, give worker: () -> Worker and weights: () -> name -> array, in place of model, data
    and loss.

    Federated reinforcement learning: give env, a gymnasium id, () -> Env, or client -> Env, so that clients differ, and perhaps
    policy: (spaces) -> nn.Module, in place of model, data and loss. `shoal jobs fed-cartpole` lists the settings.
    """
    check_listed(around)
    problem: Problem
    if env is not None:
        given = {"model": model, "data": data, "loss": loss, "metrics": metrics, "worker": worker, "weights": weights}
        if also := [name for name, value in given.items() if value is not None]:
            raise UserError(f"env: clients that act in environments have no {also[0]}; leave out {also[0]}= or env=")
        if isinstance(env, Parallel):
            raise UserError("env is a game of several agents, which federated clients do not learn: Reinforcement(env) does")
        if not isinstance(env, str):
            check_factory(env, "an id, or a function () or client -> gymnasium.Env", "client")
        problem = Environments(env, policy)
    elif worker is not None and weights is not None:
        problem = Calls(worker, weights)
    elif model is not None and data is not None:
        if not isinstance(model, type) and hasattr(model, "state_dict"):  # `model` is a module, not a function
            model = cast("Callable[[], nn.Module]", partial(deepcopy, model))
        problem = Supervised(model, data, loss, metrics, worker)
    else:
        raise UserError("Federated needs model= and data=, or worker= and weights=, or env=")
    job = Job(
        problem,
        FedAvg(),
        KeepingDeltas(),
        Bearing(),
        DeltaChecks(),
        (*around, Clip(), Bound(), Attack(), Compress()),
        name,
        seed,
    )
    job = job.configured({"method": method, **settings})
    _check_yours(model, loss, metrics, worker, weights)
    return job


def _check_yours(model: Any, loss: Any, metrics: Any, worker: Any, weights: Any) -> None:
    """Raises UserError for a part of the user's that cannot be what it is given as."""
    if model is not None and (isinstance(model, type) or not hasattr(model, "state_dict")):
        takes("model", model, "a function without arguments that makes a torch module: model=lambda: nn.Linear(5, 2), say")
    if isinstance(loss, type):
        raise UserError(f"loss is the class {loss.__name__}: expected a function (logits, y); loss={loss.__name__}(), say")
    if loss is not None and not callable(loss):
        raise UserError(f"loss is {signed(loss)}: expected a function (logits, y) -> mean; nn.functional.mse_loss, say")
    if metrics is not None and not isinstance(metrics, Mapping):
        raise UserError(f"metrics is {signed(metrics)}: expected name -> function; metrics={{'f1': f1}}, say")
    if weights is not None:
        takes("weights", weights, "a function without arguments that gives the first weights, name -> array")
    if worker is not None:
        _check_worker(worker, data=weights is None)


def _check_worker(worker: Any, data: bool) -> None:
    """data: True if the worker's maker may take (settings, population)."""
    form = "(settings, population) -> worker, or () -> worker" if data else "() -> worker"
    if not (binds(worker) or (data and binds(worker, None, None))):
        raise UserError(f"worker is {signed(worker)}: expected a class or a function {form}")
    if isinstance(worker, type):
        check_runs(worker, None)
