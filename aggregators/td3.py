"""TD3: a deterministic actor and two critics, with three repairs of DDPG.

The one idea: the target is the smaller of two critics, at an action with a little noise, so a critic's peak that stands alone
is not believed; and the actor moves less often than the critics, so that it follows values that have settled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from shoal.aggregators import State
from shoal.aggregators.box_learner import BoxLearner
from shoal.aggregators.replay import Transitions
from shoal.aggregators.trained import follow, kept, restored
from shoal.nets.perceptrons import Critics
from shoal.nets.policies import Seen
from shoal.protocol.draws import key
from shoal.protocol.layout import Bundle


def smoothed(action_NA: Tensor, noise_NA: Tensor, policy_noise: float, noise_clip: float) -> Tensor:
    """The target policy's actions with clipped noise (Fujimoto et al. 2018, equation 14), in [-1, 1]. noise: normal numbers."""
    return (action_NA + (noise_NA * policy_noise).clamp(-noise_clip, noise_clip)).clamp(-1.0, 1.0)


def clipped_target(reward_N: Tensor, discount_N: Tensor, next_value_2N: Tensor) -> Tensor:
    """The target [N] of both critics: r + discount * min Q (equation 10, clipped double Q-learning). discount is gamma, and 0
    where an episode terminated; a truncated episode is bootstrapped."""
    return reward_N + discount_N * next_value_2N.amin(0)


def critic_loss(value_2N: Tensor, target_N: Tensor, weight_N: Tensor) -> Tensor:
    """The mean squared error, added up over the critics. weight: of each transition, 1 if all are drawn alike."""
    return (weight_N * (value_2N - target_N).square()).mean(-1).sum()


def actor_loss(value_N: Tensor) -> Tensor:
    """The negative mean of the first critic's values of the actor's actions (equation 15)."""
    return -value_N.mean()


@dataclass(kw_only=True, eq=False, repr=False)
class TD3Learner(BoxLearner):
    """Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018, algorithm 1).

    actor: module with forward(observation [N, *obs]) -> actions [N, A] in [-1, 1] (nets/deterministic.py). tau: share of the
    way that the target networks go to the networks in one update of the actor.
    policy_noise, noise_clip: standard deviation and largest size of the noise on the target's actions. policy_delay: updates of
    the critics for each one of the actor.
    Metrics are means over the updates of a version; the actor's loss is that of its last update.
    """

    METRICS: ClassVar[tuple[str, ...]] = ("critic_loss", "actor_loss", "q_mean")

    lr: float = 1e-3
    policy_noise: float = 0.2
    noise_clip: float = 0.5
    policy_delay: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.target_pi, self.target_q = self.pi.twin(), self.q.twin()
        self.cost = torch.zeros((), device=self.device)

    def noise(self, size: int) -> Tensor:
        """The normal numbers [size, A] of the next update, a function of the seed and the number of updates."""
        generator = torch.Generator().manual_seed(key(self.seed, "td3", self.updates) % 2**63)
        return torch.randn((size, self.actions), generator=generator).to(self.device)

    def update(self, batch: Transitions) -> Sequence[Tensor]:
        """Make one update of the critics, and every policy_delay-th time one of the actor and of the target networks."""
        target_N = self.targets(batch, self.noise(len(batch)))
        value_2N = self.q.module(batch.inputs, self.inward(batch.action))
        error = critic_loss(value_2N, target_N, batch.weight)
        self.q.update(error)
        self.buffer.prioritize(batch.places, (value_2N - target_N).mean(0))
        if (self.updates + 1) % self.policy_delay == 0:
            self.cost = actor_loss(self.first(batch.inputs, self.pi.module(batch.inputs)))
            self.pi.update(self.cost)
            follow(self.target_pi, self.pi.flat, self.tau)
            follow(self.target_q, self.q.flat, self.tau)
        return error, self.cost, value_2N.mean()

    def first(self, observation: Seen, action_NA: Tensor) -> Tensor:
        """The values [N] of the first critic."""
        critics = self.q.module
        assert isinstance(critics, Critics)
        return critics.first(observation, action_NA)

    @torch.no_grad()
    def targets(self, batch: Transitions, noise_NA: Tensor) -> Tensor:
        """The targets [N] of both critics."""
        action_NA = smoothed(self.target_pi.module(batch.next_inputs), noise_NA, self.policy_noise, self.noise_clip)
        return clipped_target(batch.reward, batch.discount, self.target_q.module(batch.next_inputs, action_NA))

    def networks(self) -> State:
        targets = {"target_actor/weights": kept(self.target_pi), "target/weights": kept(self.target_q)}
        return {**self.pi.moments(), **self.q.state(), **targets, "actor_loss": self.cost.detach().cpu().numpy()}

    def load_networks(self, weights: Bundle, state: State) -> None:
        self.pi.load(state, weights)
        self.q.load(state)
        restored(self.target_pi, "target_actor/weights", state)
        restored(self.target_q, "target/weights", state)
        self.cost = torch.tensor(state["actor_loss"], device=self.device)
