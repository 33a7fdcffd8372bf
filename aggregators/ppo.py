"""PPO: a learner that goes several times over a round's trajectories, but not far from the policy that made them.

The one idea: the ratio of new to old probability is clipped where a further move would pay, so the same rows serve for many
gradient steps. On the first minibatch no weight has moved, so every ratio is 1: any other ratio is a bug, or a stale row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.aggregators.gae import Targets, gae
from shoal.aggregators.minibatches import MinibatchLearner
from shoal.aggregators.ratios import effective
from shoal.aggregators.staging import Batch
from shoal.nets.policies import Parameters, likelihood
from shoal.protocol.work import Moved

MEANS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "ess", "grad_norm")
BEYOND = 1.5  # times target_kl at which a step ends: the factor of OpenAI's Spinning Up and of Stable-Baselines3


@dataclass(kw_only=True, eq=False, repr=False)
class PPOLearner(MinibatchLearner):
    """Clipped proximal policy optimization (Schulman et al. 2017, equation 7), with advantages by GAE of the current values.

    A step is update_epochs passes over the unmasked rows (aggregators/minibatches.py).
    clip_range_vf: largest distance of a value from the value before the step, as the value loss sees it (0: no bound). The loss
    is the larger of the errors with and without the bound, as in OpenAI's baselines (Huang et al. 2022, detail 9).
    target_kl: KL divergence from the policy before the step. A step ends before a minibatch on which the estimate approx_kl is
    above BEYOND (1.5) x target_kl (0: never). Asking costs a wait for the device at each minibatch.
    Metrics are means over all gradient steps of a step, but for three: first_ratio_error is max |ratio - 1| on the first
    minibatch of a step, explained_variance is that of the values before the step, and gradient_steps, with a target_kl, is
    their number.
    """

    gae_lambda: float = 0.95
    clip_coef: float = 0.2
    ent_coef: float = 0.0
    norm_adv: bool = True
    clip_range_vf: float = 0.0
    target_kl: float = 0.0

    def step(self) -> Moved:
        """Make all passes over everything folded. Reading the metrics is one transfer, which waits for the device."""
        batch = self.staging.batch()
        if len(batch.rows) < 2:  # fewer than 2 rows have no spread to divide by
            return Moved(weights=False)
        self.anneal()
        targets, value_TB, explained = self._targets(batch)
        known = (batch.log_prob, value_TB, targets.value, targets.advantage)
        taken = [batch.action.flatten(0, 1), *(x.flatten() for x in known)]
        told: list[Tensor] = []
        errors: list[Tensor] = []
        for rows, parameters, value in self._minibatches(batch):
            loss, means, ratio = self._loss(parameters, value, *(x.index_select(0, rows) for x in taken))
            errors = errors or [(ratio - 1).abs().max()]
            if told and self.target_kl and float(means[MEANS.index("approx_kl")]) > BEYOND * self.target_kl:
                break
            told.append(torch.stack([*means, self.update(loss)]))
        self.steps += len(batch.rows)
        numbers = torch.cat([torch.stack(told).mean(0), torch.stack([*errors, explained])]).tolist()
        ended = {"gradient_steps": float(len(told))} if self.target_kl else {}
        return Moved({**dict(zip((*MEANS, "first_ratio_error", "explained_variance"), numbers, strict=True)), **ended})

    @torch.no_grad()
    def _targets(self, batch: Batch) -> tuple[Targets, Tensor, Tensor]:
        """The targets, the values [T, B] before the step, and the share of the targets' variance that those explain."""
        _, value_TB, after = self.outputs(batch)
        reward_TB, discount_TB = self.rewards(batch, after)
        targets = gae(reward_TB, discount_TB, value_TB[:-1], value_TB[-1], batch.mask, self.gae_lambda)
        error, target = targets.advantage.flatten()[batch.rows], targets.value.flatten()[batch.rows]
        return targets, value_TB[:-1], 1 - error.var(correction=0) / (target.var(correction=0) + 1e-8)

    def _loss(
        self,
        parameters: Parameters,
        value: Tensor,
        action: Tensor,
        old_log_prob: Tensor,
        old_value: Tensor,
        target: Tensor,
        advantage: Tensor,
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        chosen, undecided = likelihood(parameters, action)
        log_ratio = chosen - old_log_prob
        ratio = log_ratio.exp()
        if self.norm_adv:
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        policy_loss = surrogate(ratio, advantage, self.clip_coef).mean()
        value_loss = 0.5 * squared_error(value, target, old_value, self.clip_range_vf).mean()
        mean_entropy = undecided.mean()
        approx_kl = (ratio - 1 - log_ratio).mean()  # the estimator "k3" of Schulman 2020: never negative, of low variance
        beyond = ((ratio - 1).abs() > self.clip_coef).to(ratio.dtype).mean()
        known = (policy_loss, value_loss, mean_entropy, approx_kl, beyond, effective(ratio.detach()))
        told = [x.detach() for x in known]
        return policy_loss + self.vf_coef * value_loss - self.ent_coef * mean_entropy, told, ratio.detach()


def surrogate(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """The loss of each action: -min(ratio * advantage, ratio clipped to [1 - clip, 1 + clip] * advantage) (Schulman et al.
    2017, equation 7)."""
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def squared_error(value: Tensor, target: Tensor, old_value: Tensor, clip: float = 0.0) -> Tensor:
    """The squared error of each value. clip: if above 0, the larger of the errors of the value and of the value cut off at
    this distance from old_value, so that a move beyond it pays nothing, and a wrong move can always be taken back."""
    error = (target - value) ** 2
    if not clip:
        return error
    near = old_value + (value - old_value).clamp(-clip, clip)
    return torch.maximum(error, (target - near) ** 2)
