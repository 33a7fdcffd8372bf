"""Federated reinforcement learning as a problem: each client has environments of its own.

The one idea: a client's data are its own trajectory, made anew in each task, and PPO's loss of it is a loss like any other
(nets/surrogate.py). So federated methods work on this problem as on labelled data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from shoal.actors import Worker
from shoal.actors.workers.playing import Experience, Playing
from shoal.actors.workers.rollout import Rollout
from shoal.envs.making import Recipe, wants_number
from shoal.envs.population import Population
from shoal.envs.spaces import Box, Discrete, Spaces
from shoal.envs.vector import Worlds
from shoal.jobs.parts import Bearing
from shoal.jobs.problems import Environment
from shoal.jobs.settings import option, values
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle

if TYPE_CHECKING:
    from torch import nn

    from shoal.jobs.methods.method import Method


@dataclass(frozen=True)
class Environments(Environment):
    """Environments of many clients, and optionally a policy.

    env: a gymnasium id, () -> Env, or client -> Env, so that clients differ. policy: as in Environment.
    """

    kind: ClassVar[str] = "environments"
    metrics: ClassVar[Mapping[str, Any] | None] = None
    worker: ClassVar[None] = None
    stagger: ClassVar[bool] = False  # type: ignore[misc]  # no setting here: episodes begin anew in each task
    frame_stack: ClassVar[int] = 1  # type: ignore[misc]  # no setting here: a client's rows are its data, one by one

    num_envs: int = option(8, "environments of a client, stepped together", least=1)
    rollout_length: int = option(128, "steps of each environment in one task of a client", least=1)
    gamma: float = option(0.99, "discount of rewards, for each environment step that they lie ahead", least=0, most=1)
    gae_lambda: float = option(0.95, "lambda of generalized advantage estimation", least=0, most=1)
    clip_coef: float = option(0.2, "largest distance from 1 of the ratio of probabilities in the clipped loss", above=0)
    ent_coef: float = option(0.0, "weight of the entropy bonus in the loss", least=0)
    vf_coef: float = option(0.5, "weight of the value loss in the loss", least=0)
    reward_scale: float = option(
        1.0, "factor that a client multiplies rewards by; metrics of returns are of unscaled rewards", above=0
    )
    eval_episodes: int = option(20, "episodes of one greedy evaluation by a client", least=1)

    def check(self, bearing: Bearing) -> None:
        super().check(bearing)
        if self.inference != "actor":
            raise UserError(
                f"inference={self.inference}: federated clients act in the actor, which trains; leave it at inference=actor"
            )
        if self.compile_policy:
            raise UserError("compile_policy=true: federated clients act by the network that they train; leave it out")
        if self.double_buffer:
            raise UserError(
                "double_buffer=true: federated clients step all environments together; leave it at double_buffer=false"
            )
        if self.differs and self.apart:
            why = "on_env_error=replace" if self.vector != "async" else "vector=async"
            why = f"step_timeout={self.step_timeout:g}" if self.step_timeout else why
            raise UserError(f"{why}: environments that differ by client are made in the actor's process; leave it out")

    @property
    def differs(self) -> bool:
        """True if the user's function makes an environment for a client's number."""
        return callable(self.env) and wants_number(self.env, "client")

    def recipe(self, told: bool | None = None) -> Recipe:
        """The recipe of an environment of client 0, by which episodes are filmed."""
        return self.one(0).recipe(told) if self.differs else super().recipe(told)

    def one(self, client: int) -> Environment:
        """The client's environments as the problem of one learner."""
        key = ("one", client if self.differs else 0, self._asked)
        if key not in self.made:
            given = {each.name: getattr(self, each.name) for each in fields(Environment)}
            env = partial(self.env, client) if callable(self.env) and self.differs else self.env
            self.made[key] = Environment(**{**given, "env": env, "made": {}})
        found: Environment = self.made[key]
        return found

    def spaces(self) -> Spaces:
        spaces = self.one(0).spaces()
        seen = spaces.single("a federated client")
        if not isinstance(spaces.action, Discrete | Box):
            kind = type(spaces.action).__name__
            raise UserError(f"env: actions are {kind}, and federated clients learn Discrete and Box of floats; use method=ppo")
        if seen.dtype != "f4":
            raise UserError(
                f"env: observations are pictures ({list(seen.shape)} of bytes), which federated clients do not "
                "keep; wrap the environment so that they are floats"
            )
        return spaces

    def model(self) -> nn.Module:
        """The policy, with weights that no one uses: each task brings its own."""
        return self.module(0)

    def loss_function(self) -> Callable[[Any, Any], Any]:
        from shoal.nets.surrogate import Surrogate

        return Surrogate(self.clip_coef, self.vf_coef, self.ent_coef, isinstance(self.spaces().action, Discrete))

    def population(self, method: Method, seed: int) -> Population:
        """The clients, whose examples are what they saw last. There is one for each worker."""
        return Population(int(getattr(method, "clients", 1)), self._experience(seed).examples)

    def _experience(self, seed: int) -> Experience:
        key = ("seen", seed, self._asked)
        if key not in self.made:
            self.made[key] = Experience(partial(self._rollout, seed), self._judge(seed))
        found: Experience = self.made[key]
        return found

    @property
    def _asked(self) -> tuple[Any, ...]:
        """The settings. A problem with others is no user of what was made with these, though both have one `made`."""
        return tuple(values(self).values())

    def surrounded(self, worker: Worker, seed: int) -> Worker:
        return Playing(worker, self._experience(seed))

    def _rollout(self, seed: int, client: int) -> Rollout:
        acts = self.acts(seed)
        make, each = partial(self._worlds, client), self.eval_episodes
        return Rollout(make, acts, self.rollout_length, self.num_envs, seed, each, stagger=False)

    def _worlds(self, client: int, num_envs: int) -> Worlds:
        made = self.one(client).worlds()(num_envs)
        if made.spaces != self.spaces():
            made.close()
            raise UserError(
                f"env: client {client} has the spaces {made.spaces}, client 0 has {self.spaces()}; all must be alike"
            )
        return made

    def _judge(self, seed: int) -> Callable[[Bundle, Bundle], Any]:
        """See actors/workers/playing.py. The values are those of the weights that acted."""
        import torch

        from shoal.aggregators.gae import cut_off, gae
        from shoal.nets.flat import FlatModule, as_tensor
        from shoal.nets.policies import judged

        flat = FlatModule(self.module(seed))

        @torch.no_grad()
        def judge(weights: Bundle, seen: Bundle) -> Any:
            flat.read(weights)
            observation, mask = as_tensor(seen["observation"]), as_tensor(seen["mask"])
            value_TB = judged(flat.module, observation.flatten(0, 1))[1].view(-1, mask.shape[1])
            terminated, truncated = as_tensor(seen["terminated"]), as_tensor(seen["truncated"])
            reward_TB = as_tensor(seen["reward"]) * self.reward_scale
            discount_TB = self.gamma * (~terminated).float()
            if "final" in seen and len(cut := (mask & truncated & ~terminated).flatten().nonzero()[:, 0]):
                last = judged(flat.module, as_tensor(seen["final"]).flatten(0, 1)[cut])[1]
                reward_TB, discount_TB = cut_off(reward_TB, discount_TB, cut, last)
            targets = gae(reward_TB, discount_TB, value_TB[:-1], value_TB[-1], mask, self.gae_lambda)
            return targets.advantage.numpy(), targets.value.numpy()

        return judge

    def rehearsed(self) -> AbstractContextManager[None]:
        return self.one(0).rehearsed()

    def prepare(self, method: Method, seed: int) -> None:
        self.one(0).prepare(method, seed)

    def hatch(self) -> None:
        if not self.differs:
            self.one(0).hatch()

    def close(self) -> None:
        self.one(0).close()
