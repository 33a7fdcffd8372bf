"""Soft actor-critic: an actor that is paid for its entropy, two critics, and a temperature that is learned.

The one idea: value is return plus alpha times entropy. The actor goes where the smaller of two critics says that this value is
large, so that no error of a single critic is chased. alpha falls while the policy is more random than asked, and rises while
it is less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from shoal.aggregators import State
from shoal.aggregators.box_learner import BoxLearner
from shoal.aggregators.replay import Transitions
from shoal.aggregators.trained import follow, kept, restored
from shoal.nets.policies import Seen
from shoal.nets.squashed import squashed
from shoal.protocol.draws import key
from shoal.protocol.layout import Bundle


def soft_target(reward_N: Tensor, discount_N: Tensor, next_value_2N: Tensor, next_log_prob_N: Tensor, alpha: Tensor) -> Tensor:
    """The target [N] of both critics (Haarnoja et al. 2018b, equations 2 and 3): r + discount * (min Q - alpha * log pi).

    next_value: the target critics' values of the next observation and of an action that the newest policy drew there.
    discount is gamma, and 0 where an episode terminated; a truncated episode is bootstrapped.
    """
    return reward_N + discount_N * (next_value_2N.amin(0) - alpha * next_log_prob_N)


def critic_loss(value_2N: Tensor, target_N: Tensor, weight_N: Tensor) -> Tensor:
    """Half the mean squared error, added up over the critics (equation 5). weight: of each transition, 1 without priorities."""
    return 0.5 * (weight_N * (value_2N - target_N).square()).mean(-1).sum()


def actor_loss(value_2N: Tensor, log_prob_N: Tensor, alpha: Tensor) -> Tensor:
    """The mean of alpha * log pi - min Q (equation 9), for actions that the policy drew."""
    return (alpha * log_prob_N - value_2N.amin(0)).mean()


def temperature_gradient(log_prob_N: Tensor, target_entropy: float) -> Tensor:
    """The gradient [1], in log alpha, of the mean of -log alpha * (log pi + target entropy).

    That is equation 18 with alpha's logarithm in alpha's place, as the authors' implementation has it, so that alpha stays
    above 0.
    """
    return -(log_prob_N.detach().mean(0, keepdim=True) + target_entropy)


@dataclass(kw_only=True, eq=False, repr=False)
class SACLearner(BoxLearner):
    """Soft actor-critic with two critics and a learned temperature (Haarnoja et al. 2018b, algorithm 1).

    actor: module with forward(observation [N, *obs]) -> (mean, log_std), both [N, A], of the normal number that tanh squashes
    (nets/squashed.py). lr: of the temperature too. tau: share of the way that the target critics go to the critics in one
    update. autotune: alpha is learned, from 1, so that the policy's entropy becomes -A nats, of actions in [-1, 1]; else it is
    `alpha`.
    Metrics are means over the updates of a version. entropy: in nats, of actions in [-1, 1].
    """

    METRICS: ClassVar[tuple[str, ...]] = ("critic_loss", "actor_loss", "q_mean", "entropy", "alpha")

    lr: float = 3e-4
    autotune: bool = True
    alpha: float = 0.2

    def __post_init__(self) -> None:
        self.log_alpha = nn.Parameter(torch.zeros(1, device=self.device))
        super().__post_init__()
        self.fixed = torch.full((1,), self.alpha, device=self.device)
        self.target = self.q.twin()

    def beside(self) -> Sequence[nn.Parameter]:
        return [self.log_alpha] if self.autotune else []

    def noise(self, size: int) -> Tensor:
        """The normal numbers [2, size, A] of the next update, a function of the seed and the number of updates."""
        generator = torch.Generator().manual_seed(key(self.seed, "sac", self.updates) % 2**63)
        return torch.randn((2, size, self.actions), generator=generator).to(self.device)

    def update(self, batch: Transitions) -> Sequence[Tensor]:
        """Make one update of critics, temperature and actor, all by the alpha from before it."""
        noise_2NA = self.noise(len(batch))
        alpha = self.log_alpha.detach().exp() if self.autotune else self.fixed
        action_NA, log_prob_N = self.drawn(batch.inputs, noise_2NA[0])
        target_N = self.targets(batch, noise_2NA[1], alpha)
        value_2N = self.q.module(batch.inputs, self.inward(batch.action))
        error = critic_loss(value_2N, target_N, batch.weight)
        self.q.update(error)
        self.buffer.prioritize(batch.places, (value_2N - target_N).mean(0))
        if self.autotune:
            self.log_alpha.grad = temperature_gradient(log_prob_N, -self.actions)
        cost = actor_loss(self.q.module(batch.inputs, action_NA), log_prob_N, alpha)
        self.pi.update(cost)
        follow(self.target, self.q.flat, self.tau)
        return error, cost, value_2N.mean(), -log_prob_N.mean(), alpha[0]

    def drawn(self, observation: Seen, noise_NA: Tensor) -> tuple[Tensor, Tensor]:
        """Actions [N, A] in [-1, 1] that the newest policy draws, and their log densities [N]."""
        mean_NA, log_std_NA = self.pi.module(observation)
        return squashed(mean_NA, log_std_NA, noise_NA)

    @torch.no_grad()
    def targets(self, batch: Transitions, noise_NA: Tensor, alpha: Tensor) -> Tensor:
        """The targets [N] of both critics."""
        action_NA, log_prob_N = self.drawn(batch.next_inputs, noise_NA)
        value_2N = self.target.module(batch.next_inputs, action_NA)
        return soft_target(batch.reward, batch.discount, value_2N, log_prob_N, alpha)

    def networks(self) -> State:
        log_alpha = self.log_alpha.detach().cpu().numpy().copy()
        return {**self.pi.moments(), **self.q.state(), "target/weights": kept(self.target), "log_alpha": log_alpha}

    def load_networks(self, weights: Bundle, state: State) -> None:
        self.pi.load(state, weights)
        self.q.load(state)
        restored(self.target, "target/weights", state)
        self.log_alpha.data.copy_(torch.tensor(state["log_alpha"]))
