"""DQN: values of actions, learned from a replay by bootstrapping from a target network.

The one idea: the target of a value is what was paid plus the discounted value of the best action that follows, by a network
that moves only now and then (Mnih et al. 2015). Double DQN lets the learned network choose that action, so that an error that
makes an action look good is not also taken for its value (van Hasselt et al. 2016, equation 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from shoal.aggregators import State
from shoal.aggregators.off_policy import OffPolicyLearner
from shoal.aggregators.replay import Transitions
from shoal.aggregators.trained import Trained, follow, kept, restored
from shoal.envs.spaces import apart
from shoal.protocol.layout import Bundle


@dataclass(kw_only=True, eq=False, repr=False)
class DQNLearner(OffPolicyLearner):
    """Deep Q-learning with n-step targets, a target network and the Huber loss.

    network: module with forward(observation [N, *obs]) -> values [N, n] (nets/q.py). double: double DQN.
    target_update_interval: gradient steps between two updates of the target network, which moves by the share tau.
    Metrics are means over the gradient steps of a version: td_error is the mean size of the errors.
    """

    METRICS: ClassVar[tuple[str, ...]] = ("value_loss", "q_mean", "td_error", "grad_norm")

    network: nn.Module = field(kw_only=False)
    lr: float = 5e-4
    max_grad_norm: float = 10.0
    double: bool = True
    target_update_interval: int = 250
    tau: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.q = Trained("q", self.network, self.device, lr=self.lr, max_grad_norm=self.max_grad_norm)
        self.target = self.q.twin()

    def weights(self) -> Bundle:
        return self.q.flat.bundle()

    def update(self, batch: Transitions) -> Sequence[Tensor]:
        chosen = self.q.module(apart(batch.seen)[0]).gather(1, batch.action[:, None]).squeeze(1)
        error = chosen - self.targets(batch)
        self.buffer.prioritize(batch.places, error)
        loss = (batch.weight * smooth_l1_loss(error, torch.zeros_like(error), reduction="none")).mean()
        norm = self.q.update(loss)
        if (self.updates + 1) % self.target_update_interval == 0:
            follow(self.target, self.q.flat, self.tau)
        return [x.detach() for x in (loss, chosen.mean(), error.abs().mean(), norm)]

    @torch.no_grad()
    def targets(self, batch: Transitions) -> Tensor:
        """The targets [N] of the values of the batch's actions."""
        seen, allowed = apart(batch.following)
        following = self.target.module(seen)
        best = permitted(self.q.module(seen) if self.double else following, allowed).argmax(1, keepdim=True)
        value = following.gather(1, best).squeeze(1)
        found: Tensor = batch.reward + batch.discount * value
        return found

    def networks(self) -> State:
        return {**self.q.moments(), "target/weights": kept(self.target)}

    def load_networks(self, weights: Bundle, state: State) -> None:
        self.q.load(state, weights)
        restored(self.target, "target/weights", state)


def permitted(values: Tensor, allowed: Tensor | None) -> Tensor:
    """The values [..., n] with -inf for each action that is not allowed; allowed: bool [..., n], None if there are no masks."""
    return values if allowed is None else values.masked_fill(~allowed, -torch.inf)
