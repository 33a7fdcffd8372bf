"""PPO's loss of rows that are a data set: each has an action, its log probability, its advantage and the target of its value.

The one idea: a trajectory whose advantages are known is labelled data. Its loss is a function of a policy's outputs and of
labels, as cross entropy is, so any trainer of labelled data can learn to act.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.nets.policies import Parameters, entropy, log_prob


@dataclass(frozen=True)
class Surrogate:
    """The clipped surrogate loss (Schulman et al. 2017, equation 9), as a mean over the rows of a batch.

    clip_coef: epsilon. vf_coef, ent_coef: weights of half the mean squared error of the value, and of the entropy.
    discrete: True if the action is an index.
    """

    clip_coef: float
    vf_coef: float
    ent_coef: float
    discrete: bool

    def __call__(self, outputs: tuple[Parameters, Tensor], y: Tensor, reduction: str = "mean") -> Tensor:
        """The loss, a scalar, or with reduction="none" that of each row, [N]. outputs: (action parameters, value [N] or
        [N, 1]); y: float32 [N, A + 3], see actors/workers/playing.py."""
        parameters, value = outputs
        action, old_log_prob, advantage, target = y[:, :-3], y[:, -3], y[:, -2], y[:, -1]
        ratio = (log_prob(parameters, action[:, 0].long() if self.discrete else action) - old_log_prob).exp()
        clipped = ratio.clamp(1 - self.clip_coef, 1 + self.clip_coef)
        reduced = torch.mean if reduction == "mean" else torch.clone
        policy_loss = -reduced(torch.minimum(ratio * advantage, clipped * advantage))
        value_loss = 0.5 * reduced((target - value.reshape(len(y))) ** 2)
        return policy_loss + self.vf_coef * value_loss - self.ent_coef * reduced(entropy(parameters))
