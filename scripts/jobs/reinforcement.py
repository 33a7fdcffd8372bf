"""Reinforcement learning as a job: an environment, and optionally a policy.

The one idea: the machinery is that of a federated job. A contribution is a trajectory instead of a delta; nothing else differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from shoal.envs.making import check_factory
from shoal.envs.spaces import Spaces
from shoal.jobs.job import Job
from shoal.jobs.methods.impala import IMPALA
from shoal.jobs.methods.method import Method
from shoal.jobs.parts import Bearing, Checks, Keeping
from shoal.jobs.problems import Environment
from shoal.jobs.wraps import CompressWeights, Opponents, check_listed
from shoal.protocol.errors import UserError, takes

if TYPE_CHECKING:
    from torch import nn


def Reinforcement(  # noqa: N802  it reads like the type of what it makes
    env: str | Callable[..., Any],
    policy: Callable[[Spaces], nn.Module] | None = None,
    *,
    method: str | Method | type[Method] = "impala",
    around: Sequence[Any] = (),
    name: str = "reinforcement",
    seed: int = 0,
    **settings: Any,
) -> Job:
    """An RL job: `job = Reinforcement("CartPole-v1", method="ppo")`, run by `shoal.run(job)` or `shoal simulate FILE.py:job`.

    env: a gymnasium id, () -> Env, or num_envs -> VectorEnv. policy: (spaces) -> nn.Module with forward(observation) -> (logits
    | (mean, log_std), value). Default: a multi-layer perceptron that actors run without torch. method: a name, or a method of
    your own (docs/own.md). around: wraps around the aggregator, innermost first. Further keywords are settings: `shoal jobs
    cartpole` lists them. Settings that nobody gave are those of a published table, if `env` is an id of a family that has one
    for the method (docs/presets.md); preset="none" leaves them at the defaults.
    """
    check_listed(around)
    bearing = Bearing(on_failure="stop")
    parts = (Environment(env, policy), IMPALA(), Keeping(), bearing, Checks(), (Opponents(), *around, CompressWeights()))
    job = Job(*parts, name, seed, given=frozenset())
    job = job.configured({"method": method, **settings})
    if not isinstance(env, str):
        form = "an id, a function () -> gymnasium.Env, or num_envs -> VectorEnv, either with an argument seed if it wants one"
        check_factory(env, form)
    if policy is not None:
        form = "a function of the spaces that makes a torch module"
        if hasattr(policy, "state_dict") and not isinstance(policy, type):
            raise UserError(f"policy is a module, {type(policy).__name__}: expected {form}; its class, say")
        takes("policy", policy, form, None)
    return job
