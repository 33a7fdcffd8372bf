"""A2C: a learner that takes one gradient step over a round's trajectories, which its own weights have made.

The one idea: without a second pass and without lag no ratio is needed, so the loss is the policy gradient itself. With lam = 1
the advantage is that of the return up to the end of the rollout.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.aggregators.descent import TrajectoryLearner
from shoal.aggregators.gae import gae
from shoal.aggregators.staging import Batch
from shoal.nets.policies import first_rows, likelihood
from shoal.protocol.work import Moved

METRICS = ("policy_loss", "value_loss", "entropy", "explained_variance", "grad_norm")


@dataclass(kw_only=True, eq=False, repr=False)
class A2CLearner(TrajectoryLearner):
    """Advantage actor-critic in rounds (Mnih et al. 2016, section 4 and algorithm S3, with synchronous actors).

    With V the values and the return R_t = r_t + gamma r_(t+1) + ... + gamma^(k-1) r_(t+k-1) + gamma^k V(x_(t+k)), k rows being
    left of the trajectory or of the episode, the loss is policy_loss + vf_coef value_loss - ent_coef entropy. Its parts are
    means over the rows t where mask is True:

        policy_loss = -mean (R_t - V(x_t)) log pi(a_t|x_t), of which only log pi is differentiated,
        value_loss = 1/2 mean (R_t - V(x_t))^2, of which only V(x_t) is differentiated,
        entropy = -mean sum over a of pi(a|x_t) log pi(a|x_t).

    gae_lambda: below 1 generalized advantage estimation (aggregators/gae.py) gives the advantage, R_t - V(x_t) here, and R_t is
    V(x_t) plus the advantage. norm_adv: the advantages of a step are scaled to mean 0 and standard deviation 1.
    """

    gae_lambda: float = 1.0
    norm_adv: bool = False

    def step(self) -> Moved:
        """Make one gradient step over everything folded. Reading the metrics is one transfer, which waits for the device."""
        batch = self.staging.batch()
        if len(batch.rows) < (2 if self.norm_adv else 1):  # one row has no spread to divide by
            return Moved(weights=False)
        self.anneal()
        loss, told = self._loss(batch)
        norm = self.update(loss)
        self.steps += len(batch.rows)
        return Moved(dict(zip(METRICS, torch.stack([*told, norm]).tolist(), strict=True)))

    def _loss(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        parameters, value_TB, after = self.outputs(batch)
        acting = first_rows(parameters, batch.mask.numel())  # without the last observation, which no action followed
        known_TB = value_TB.detach()
        reward_TB, discount_TB = self.rewards(batch, after)
        targets = gae(reward_TB, discount_TB, known_TB[:-1], known_TB[-1], batch.mask, self.gae_lambda)
        target, advantage = (x.flatten()[batch.rows] for x in targets)
        if self.norm_adv:
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        likely, undecided = (x[batch.rows] for x in likelihood(acting, batch.action.flatten(0, 1)))
        policy_loss = -(likely * advantage).mean()
        error = target - value_TB[:-1].flatten()[batch.rows]
        value_loss = 0.5 * (error**2).mean()
        mean_entropy = undecided.mean()
        explained = 1 - error.detach().var(correction=0) / (target.var(correction=0) + 1e-8)
        told = [policy_loss, value_loss, mean_entropy, explained]
        return policy_loss + self.vf_coef * value_loss - self.ent_coef * mean_entropy, [x.detach() for x in told]
