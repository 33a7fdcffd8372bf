"""Reinforcement learning as a job: an environment, and a policy if one likes.

The one idea: it is the same machinery. A contribution is a trajectory instead of a delta, and nothing else differs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from shoal.actors import Worker
from shoal.jobs.settings import JOURNALS, configured, option, plain
from shoal.protocol.compress import CODECS, Coding
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Layout

if TYPE_CHECKING:
    import torch
    from torch import nn

    from shoal.aggregators import Aggregator
    from shoal.coordinator.deciding.plans import Asked, Plan
    from shoal.coordinator.deciding.rules import Goal, Rules
    from shoal.envs.hatchery import Hatchery
    from shoal.envs.spaces import Spaces
    from shoal.envs.vector import Worlds
    from shoal.jobs.job import Evaluate


@dataclass(frozen=True)
class ReinforcementSettings:
    """Everything that can be set of a reinforcement-learning job."""

    algorithm: str = option("impala", "the learner", choices=("impala", "ppo"))
    total_timesteps: int = option(500_000, "environment steps to learn from", least=1)
    num_envs: int = option(32, "environments of a trajectory", least=1)
    rollout_length: int = option(32, "steps of a trajectory", least=1)
    clients: int = option(4, "ppo: trajectories of a round, each from environments of its own", least=1)
    batch: int = option(2, "impala: trajectories a step", least=1)
    max_lag: int = option(8, "impala: versions that a trajectory may be behind", least=0)
    gamma: float = option(0.99, "discount", least=0, most=1)
    gae_lambda: float = option(0.95, "ppo: of the advantage estimate", least=0, most=1)
    clip_coef: float = option(0.2, "ppo: of the ratio", above=0)
    update_epochs: int = option(4, "ppo: passes over a round", least=1)
    num_minibatches: int = option(4, "ppo: of a pass", least=1)
    norm_adv: bool = option(True, "ppo: advantages to mean 0 and deviation 1")
    clip_rho: float = option(1.0, "impala: V-trace's bound on rho", above=0)
    clip_c: float = option(1.0, "impala: V-trace's bound on c", above=0)
    lam: float = option(1.0, "impala: V-trace's lambda", least=0, most=1)
    lr: float = option(1e-3, "of the learner", above=0)
    anneal_lr: bool = option(True, "the learning rate falls to 0 over total_timesteps")
    ent_coef: float = option(0.01, "of the entropy bonus", least=0)
    vf_coef: float = option(0.5, "of the value loss", least=0)
    max_grad_norm: float = option(0.5, "of the gradient", above=0)
    optimizer: str = option("adam", "of the learner", choices=("adam", "rmsprop"))
    reward_scale: float = option(1.0, "multiplies rewards for the learner", above=0)
    hidden: tuple[int, ...] = option((64, 64), "units of the layers of the built-in policy")
    activation: str = option("tanh", "of the built-in policy", choices=("tanh", "relu"))
    compress_weights: str = option("none", "how weights are told to actors, as what changed", choices=("none", *CODECS))
    compress_ratio: float = option(0.1, "share of the entries that topk and randk tell", above=0, most=1)
    compress_block: int = option(256, "entries with a scale of int8 and int4", least=1)
    eval_every: int = option(0, "versions between greedy evaluations (0: none)", least=0)
    eval_episodes: int = option(20, "episodes of an evaluation", least=1)
    lease: float = option(60.0, "seconds a rollout may take (0: any)", least=0)
    step_timeout: float = option(
        0.0, "seconds a step or reset of an environment may take, each in its own process (0: any, in the actor's)", least=0
    )
    on_failure: str = option("stop", "when a task failed three times", choices=("continue", "stop"))
    journal: str = option("auto", "what is durable before it is acknowledged", choices=JOURNALS)
    snapshot_every: float = option(10.0, "seconds between snapshots of the weights", least=0)
    strikes: int = option(5, "failures in a row after which an actor gets no work for a while (0: never)", least=0)
    quarantine: float = option(10.0, "seconds of that, twice as many each time up to eight times", above=0)


class Reinforcement:
    """A job: `job = Reinforcement(env="CartPole-v1", algorithm="ppo")`, run by `shoal simulate FILE.py:job`.

    env: a gymnasium id, () -> Env, or num_envs -> VectorEnv. policy: (spaces) -> nn.Module with forward(observation) ->
    (logits | (mean, log_std), value); by default a multi-layer perceptron that actors run without torch.
    Further keywords are ReinforcementSettings.
    """

    def __init__(
        self,
        env: str | Callable[..., Any],
        policy: Callable[[Spaces], nn.Module] | None = None,
        *,
        name: str = "reinforcement",
        seed: int = 0,
        **settings: Any,
    ) -> None:
        self.env, self.policy = env, policy
        self.name, self.seed = name, seed
        self.settings = configured(ReinforcementSettings(), settings)
        self._check()
        self._spaces: Spaces | None = None
        self._hatchery: Hatchery | None = None

    def _check(self) -> None:
        if not all(units > 0 for units in self.settings.hidden):
            raise UserError(f"hidden={','.join(map(str, self.settings.hidden))}: allowed are numbers from 1; hidden=64,64, say")
        if (limit := self.settings.step_timeout) >= self.settings.lease > 0:
            raise UserError(
                f"step_timeout={limit:g}: must be below lease={self.settings.lease:g}, after which the actor is ended"
            )

    def configured(self, changes: Mapping[str, Any], seed: int | None = None) -> Reinforcement:
        twin = copy(self)
        twin.seed = self.seed if seed is None else seed
        twin.settings = configured(self.settings, changes)
        twin._check()
        return twin

    def plain(self) -> dict[str, Any]:
        return plain(self.settings)

    @property
    def streams(self) -> bool:
        return self.settings.algorithm == "impala"

    def spaces(self) -> Spaces:
        if self._spaces is None:
            from shoal.envs.vector import spaces_in

            self._spaces = spaces_in(self.env)
        return self._spaces

    def module(self) -> nn.Module:
        """The policy, with the weights that this seed starts from."""
        from shoal.nets.models import seeded
        from shoal.nets.policies import ActorCritic

        if (policy := self.policy) is not None:
            return seeded(lambda: policy(self.spaces()), self.seed)
        return ActorCritic(self.spaces(), self.settings.hidden, self.settings.activation, seed=self.seed)

    def example(self) -> tuple[torch.Tensor, ...]:
        """Inputs that the policy takes: two observations of nothing."""
        import torch

        from shoal.nets.flat import TORCH_DTYPES

        seen = self.spaces().observation
        return (torch.zeros((2, *seen.shape), dtype=TORCH_DTYPES[seen.dtype]),)

    # In the coordinator

    def aggregator(self, device: str) -> Aggregator:
        from shoal.aggregators.around.told import Told

        s, learner = self.settings, self._learner(device)
        if s.compress_weights == "none":
            return learner
        return Told(learner, Coding(s.compress_weights, s.compress_ratio, s.compress_block), seed=self.seed)

    def _learner(self, device: str) -> Aggregator:
        from shoal.aggregators.impala import IMPALA
        from shoal.aggregators.ppo import PPO

        s = self.settings
        shared = {
            "device": device,
            "lr": s.lr,
            "gamma": s.gamma,
            "ent_coef": s.ent_coef,
            "vf_coef": s.vf_coef,
            "max_grad_norm": s.max_grad_norm,
            "optimizer": s.optimizer,
            "reward_scale": s.reward_scale,
            "total_timesteps": s.total_timesteps if s.anneal_lr else None,
        }
        if self.streams:
            return IMPALA(self.module(), clip_rho=s.clip_rho, clip_c=s.clip_c, lam=s.lam, **shared)  # type: ignore[arg-type]
        return PPO(
            self.module(),
            seed=self.seed,
            gae_lambda=s.gae_lambda,
            clip_coef=s.clip_coef,
            update_epochs=s.update_epochs,
            num_minibatches=s.num_minibatches,
            norm_adv=s.norm_adv,
            **shared,  # type: ignore[arg-type]
        )

    def plan(self, asked: Asked) -> Plan:
        from shoal.coordinator.deciding.plans.rounds import Rounds
        from shoal.coordinator.deciding.plans.stream import Stream

        s = self.settings
        if self.streams:
            return Stream(s.batch, s.max_lag, seed=self.seed, evaluate_every=s.eval_every, asked=asked)
        return Rounds(
            s.clients,
            seed=self.seed,
            evaluate_every=s.eval_every,
            evaluate_cohort=1 if s.eval_every else 0,
            asked=asked,
        )

    def goal(self) -> Goal:
        from shoal.coordinator.deciding.rules import Goal

        return Goal(steps=self.settings.total_timesteps)

    def rules(self) -> Rules:
        from shoal.coordinator.deciding.rules import Rules

        # One rollout an actor at a time: with a second one waiting, every trajectory would be a step older than it need be.
        return Rules(
            ahead=1 if self.streams else 2,
            sticky=not self.streams,
            lease=self.settings.lease,
            on_failure=self.settings.on_failure,
            strikes=self.settings.strikes,
            quarantine=self.settings.quarantine,
        )

    def layouts(self, weights: Layout) -> Sequence[Layout]:
        return [self.spaces().trajectory(self.settings.rollout_length, self.settings.num_envs)]

    def central(self, device: str = "cpu") -> Evaluate | None:
        return None

    def due(self, version: int) -> bool:
        return False

    # In an actor

    def prepare(self) -> None:
        """Before processes are forked, or threads begun: what they can share."""
        self.spaces()
        if self.settings.step_timeout:
            self.hatch()

    def hatch(self) -> None:
        """Have the process from which environments' processes are forked: of a function, which a fork alone can hand on."""
        if self._hatchery is None:
            from shoal.envs.hatchery import Hatchery

            self._hatchery = Hatchery.forked(self.env)

    def worker(self) -> Worker:
        from shoal.actors.workers.rollout import Rollout
        from shoal.nets.numpy_policy import NumpyPolicy, Policy

        s = self.settings
        policy: Policy = NumpyPolicy(s.activation)
        if self.policy is not None:
            from shoal.nets.policies import TorchPolicy

            policy = TorchPolicy(self.module())
        return Rollout(self._worlds(), policy, s.rollout_length, s.num_envs, self.seed, s.eval_episodes)

    def _worlds(self) -> Callable[[int], Worlds]:
        from shoal.envs.vector import make_vector

        if not self.settings.step_timeout:
            return partial(make_vector, self.env)
        from shoal.envs.hatchery import Hatchery
        from shoal.envs.isolated import Isolated

        hatchery, timeout, spaces = self._hatchery, self.settings.step_timeout, self.spaces()
        if hatchery is None and isinstance(self.env, str):
            hatchery = Hatchery.started(self.env)
        if hatchery is None:
            raise UserError("step_timeout: a function's environments need job.prepare() before there are threads")
        return lambda num_envs: Isolated(hatchery, num_envs, spaces, timeout, time.monotonic)
