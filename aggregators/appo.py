"""APPO: a learner that goes several times over trajectories of a stream, and clips its ratio to a slow copy of the policy.

The one idea: where actors have many policies, none of them is fit to be the centre of a clip. A target network is: V-trace
corrects from the actor's policy to the target's, and the clipped surrogate keeps the new policy near the target's.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shoal.aggregators import State
from shoal.aggregators.descent import outputs_of
from shoal.aggregators.gae import Targets
from shoal.aggregators.minibatches import MinibatchLearner
from shoal.aggregators.ppo import surrogate
from shoal.aggregators.ratios import WEIGHTS, effective
from shoal.aggregators.staging import Batch
from shoal.aggregators.vtrace import vtrace
from shoal.nets.flat import FlatModule, as_tensor
from shoal.nets.passes import judge_of
from shoal.nets.policies import Parameters, first_rows, likelihood, log_prob
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Moved

MEANS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "grad_norm")
ONCE = ("rho_mean", "ess", "explained_variance")


@dataclass(kw_only=True, eq=False, repr=False)
class APPOLearner(MinibatchLearner):
    """Asynchronous PPO with a target network: IMPACT (Luo et al. 2020, section 3), as in RLlib's APPO.

    With mu the actor's policy, t the target's and pi the learner's: rho = t / mu gives V-trace's targets and advantages A, and
    the policy's loss is the clipped surrogate of pi / max(t, mu / target_worker_clipping) and A.
    target_update_interval: versions from one copy of the learner's weights to the target network to the next.
    A step is update_epochs passes over the unmasked rows (aggregators/minibatches.py).
    Losses are means over rows; value_loss is half the mean squared error. lag_weight: as in IMPALALearner. Of the metrics,
    rho_mean and ess (of rho) and explained_variance are of the step's beginning; the others are means over its gradient steps.
    """

    clip_rho: float = 1.0
    clip_c: float = 1.0
    lam: float = 1.0
    vtrace_alpha: float = 1.0
    lag_weight: str = "none"
    clip_coef: float = 0.4
    target_worker_clipping: float = 2.0
    target_update_interval: int = 2
    update_epochs: int = 2
    num_minibatches: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.target = FlatModule(copy.deepcopy(self.flat.module), self.device)
        self.target_judge = judge_of(self.target)
        self.versions = 0

    def step(self) -> Moved:
        """Make all passes over everything folded. Reading the metrics is one transfer, which waits for the device."""
        batch = self.staging.batch()
        self.versions += 1
        if len(batch.rows) < 2:  # a minibatch has at least 2 rows
            return Moved(weights=False)
        self.anneal()
        targets, centre_TB, once = self._targets(batch)
        weight_B = WEIGHTS[self.lag_weight](batch.lag) if self.lag_weight in WEIGHTS else torch.ones_like(batch.lag)
        known = (centre_TB, targets.value, targets.advantage, weight_B.expand_as(batch.mask))
        taken = [batch.action.flatten(0, 1), *(x.flatten() for x in known)]
        told: list[Tensor] = []
        for rows, parameters, value in self._minibatches(batch):
            loss, means = self._loss(parameters, value, *(x.index_select(0, rows) for x in taken))
            told.append(torch.stack([*means, self.update(loss)]))
        self.steps += len(batch.rows)
        if self.versions % self.target_update_interval == 0:
            self.target.raw.copy_(self.flat.raw)
        numbers = torch.cat([torch.stack(told).mean(0), torch.stack(once)]).tolist()
        return Moved(dict(zip((*MEANS, *ONCE), numbers, strict=True)))

    @torch.no_grad()
    def _targets(self, batch: Batch) -> tuple[Targets, Tensor, list[Tensor]]:
        """The targets, the log [T, B] of the probability that the surrogate's ratio is over, and the metrics ONCE."""
        _, value_TB, after = self.outputs(batch)
        parameters, _, _ = outputs_of(self.target.module, self.target_judge, batch)
        slow = log_prob(first_rows(parameters, batch.mask.numel()), batch.action.flatten(0, 1))
        target_TB = slow.view_as(batch.mask)
        rho_TB = (target_TB - batch.log_prob).exp()
        reward_TB, discount_TB = self.rewards(batch, after)
        clips = (self.clip_rho, self.clip_c, self.lam, self.vtrace_alpha)
        targets = vtrace(rho_TB, reward_TB, discount_TB, value_TB[:-1], value_TB[-1], batch.mask, *clips)
        target, error = targets.value.flatten()[batch.rows], (targets.value - value_TB[:-1]).flatten()[batch.rows]
        explained = 1 - error.var(correction=0) / (target.var(correction=0) + 1e-8)
        ratio = rho_TB.flatten()[batch.rows]
        centre_TB = torch.maximum(target_TB, batch.log_prob - math.log(self.target_worker_clipping))
        return targets, centre_TB, [ratio.mean(), effective(ratio), explained]

    def _loss(
        self,
        parameters: Parameters,
        value: Tensor,
        action: Tensor,
        centre: Tensor,
        target: Tensor,
        advantage: Tensor,
        weight: Tensor,
    ) -> tuple[Tensor, list[Tensor]]:
        chosen, undecided = likelihood(parameters, action)
        log_ratio = chosen - centre
        ratio = log_ratio.exp()
        policy_loss = (weight * surrogate(ratio, advantage, self.clip_coef)).mean()
        value_loss = 0.5 * (weight * (target - value) ** 2).mean()
        mean_entropy = (weight * undecided).mean()
        approx_kl = (ratio - 1 - log_ratio).mean()
        beyond = ((ratio - 1).abs() > self.clip_coef).to(ratio.dtype).mean()
        told = [x.detach() for x in (policy_loss, value_loss, mean_entropy, approx_kl, beyond)]
        return policy_loss + self.vf_coef * value_loss - self.ent_coef * mean_entropy, told

    def state(self) -> State:
        return {**super().state(), "target": self.target.raw.cpu().numpy().copy(), "versions": np.array(self.versions)}

    def load(self, weights: Bundle, state: State) -> None:
        super().load(weights, state)
        self.target.raw.copy_(as_tensor(np.asarray(state["target"])))
        self.versions = int(state["versions"])
