"""The frame of learners that descend a loss on trajectories: gradient, clip, optimizer, and a learning rate that falls to 0.

The one idea: with all weights in one vector, the clip is one norm and the optimizer has one parameter, so the optimizer's
whole memory is a handful of flat arrays that a snapshot can hold by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from shoal.aggregators import State
from shoal.aggregators.frames import framed
from shoal.aggregators.gae import cut_off
from shoal.aggregators.staging import Batch, Staging, Statistics
from shoal.aggregators.trained import OPTIMIZERS, Trained
from shoal.envs.spaces import apart
from shoal.nets.moments import Moments
from shoal.nets.normal_module import detached
from shoal.nets.passes import judge_of
from shoal.nets.policies import Judge, Seen, every, judged
from shoal.nets.recurrent import After, Unrolled, after_rows, unrolled
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution

FUSED = frozenset({"adam"})  # optimizers that torch makes a step of in one call, on a CPU too


@dataclass(kw_only=True, eq=False, repr=False)
class TrajectoryLearner:
    """An aggregator of trajectories but for its `step`: a policy, the trajectories folded in, one optimizer over all weights.

    policy: module with forward(observation [N, *obs]) -> (logits or (mean, log_std), value [N] or [N, 1]): nets/policies.py.
    lr: first learning rate. It falls linearly to 0 at total_timesteps environment steps; it stays if anneal_lr is False or
    total_timesteps is None.
    max_grad_norm: largest Euclidean norm of a gradient; a longer gradient is scaled down to it. math.inf: no bound.
    rms_prop_eps: number that RMSprop adds to the root of its mean square.
    max_reward: largest absolute value of a reward; a larger one counts as that (0: no bound). reward_scale: factor of every
    reward. clip_reward: largest absolute value of a reward that is scaled by running statistics.
    judge: forward of the policy, which learners call in place of the module (nets/passes.py).
    updates, steps: numbers of gradient steps made and of environment steps learned from.
    Raises UserError for a module without trainable parameters, or with a trainable parameter that is not float32.
    """

    linear: ClassVar[bool] = False

    policy: nn.Module = field(kw_only=False)
    device: torch.device | str = "cpu"
    lr: float = 1e-3
    gamma: float = 0.99
    ent_coef: float = 0.01
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    optimizer: str = "adam"
    rms_prop_eps: float = 0.01
    max_reward: float = 0.0
    reward_scale: float = 1.0
    clip_reward: float = 10.0
    total_timesteps: int | None = None
    anneal_lr: bool = True

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer={self.optimizer!r}: must be one of {', '.join(OPTIMIZERS)}")
        self.trained = Trained(
            "",
            self.policy,
            self.device,
            lr=self.lr,
            max_grad_norm=self.max_grad_norm,
            optimizer=self.optimizer,
            eps=self.rms_prop_eps if self.optimizer == "rmsprop" else None,
            fused=self.optimizer in FUSED and torch.device(self.device).type == "cpu",
        )
        self.flat, self.descent = self.trained.flat, self.trained.descent
        self.staging = Staging(self.device, self._normalised)
        self.normal = detached(self.flat.module)
        self.judge = judge_of(self.flat)
        self.updates = self.steps = 0

    def weights(self) -> Bundle:
        return self.flat.bundle()

    def fold(self, contribution: Contribution) -> None:
        self.staging.fold(contribution)

    @torch.no_grad()
    def _normalised(self, batch: Batch, statistics: Sequence[Statistics]) -> Batch:
        """The batch as it is learned from: observations scaled by the statistics of the weights that were published, so that
        nothing is stale at lag 0; rewards by those that have this batch in them. Then the statistics of the observations are
        merged too, into the weights that are published next."""
        batch = framed(batch)
        if self.max_reward:
            batch = replace(batch, reward=batch.reward.clamp(-self.max_reward, self.max_reward))
        if (normal := self.normal) is None:
            return batch
        observation, final = normal(batch.observation), normal(batch.final)
        for name in normal.shapes:
            normal.take(name, [Moments.read(each, name) for each in statistics])
        return replace(batch, observation=observation, final=final, reward=normal.reward(batch.reward, self.clip_reward))

    def values(self, observation: Seen) -> Tensor:
        """The values [N] of observations [N, *obs] by the current weights, from which a truncated episode bootstraps."""
        return judged(self.judge, observation)[1]

    def outputs(self, batch: Batch) -> Unrolled:
        """The action parameters and values of all T + 1 rows of observations. A policy with memory goes through them in their
        order, from the state that came with the trajectories."""
        return outputs_of(self.flat.module, self.judge, batch)

    @torch.no_grad()
    def rewards(self, batch: Batch, after: After = ()) -> tuple[Tensor, Tensor]:
        """The pair (reward, discount) of a batch, float32 [T, B], as `gae` and `vtrace` take them. reward: times reward_scale.
        discount: gamma, 0 where an episode terminated. The values of `batch.final` are added where no row holds them. after: of
        a policy with memory, its state after each row, from which it values them."""
        reward_TB, discount_TB = batch.reward * self.reward_scale, self.gamma * (~batch.terminated).to(batch.reward.dtype)
        if not len(batch.cut):
            return reward_TB, discount_TB
        if after:
            value = self.flat.module(apart(batch.final)[0], after_rows(after, batch.cut))[1].reshape(len(batch.cut))
        else:
            value = self.values(batch.final)
        return cut_off(reward_TB, discount_TB, batch.cut, value)

    def anneal(self) -> None:
        """Set the learning rate of the next updates from `steps`, the environment steps learned from so far."""
        left = 1.0
        if self.anneal_lr and self.total_timesteps is not None:
            left = max(0.0, 1.0 - self.steps / self.total_timesteps)
        for group in self.descent.param_groups:
            group["lr"] = self.lr * left

    def update(self, loss: Tensor) -> Tensor:
        """Make one gradient step. Returns the gradient's norm before the clip, still on the device."""
        self.flat.grad.zero_()
        loss.backward()  # type: ignore[no-untyped-call]
        return self.descended()

    def descended(self) -> Tensor:
        """Make one step down the gradient that is there. Returns its norm before the clip, still on the device."""
        self.updates += 1
        return self.trained.descended()

    def state(self) -> State:
        return {**self.trained.moments(), "counters": torch.tensor([self.updates, self.steps]).numpy()}

    def load(self, weights: Bundle, state: State) -> None:
        self.staging.clear()
        self.trained.load(state, weights)
        self.updates, self.steps = (int(n) for n in state["counters"])


def outputs_of(module: nn.Module, judge: Judge, batch: Batch) -> Unrolled:
    """The action parameters and values of all T + 1 rows of observations. judge: the module's forward (nets/passes.py)."""
    if batch.first is not None:
        return unrolled(module, batch.observation, batch.state, batch.first)
    parameters, value = judged(judge, every(batch.observation, lambda x: x.flatten(0, 1)))
    return Unrolled(parameters, value.view(-1, batch.mask.shape[1]), ())
