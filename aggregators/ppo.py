"""PPO: a learner that goes several times over a round's trajectories, but not far from the policy that made them.

The one idea: the ratio of new to old probability is clipped where a further move would pay, so the same rows serve for many
gradient steps. On the first minibatch no weight has moved, so every ratio is 1: any other ratio is a bug, or a stale row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter, methodcaller

import torch
from torch import Tensor

from shoal.aggregators.descent import TrajectoryLearner
from shoal.aggregators.gae import Targets, gae
from shoal.aggregators.staging import Batch
from shoal.nets.distributions import selected
from shoal.nets.policies import Parameters, every, judged, likelihood
from shoal.nets.recurrent import unrolled
from shoal.protocol import draws
from shoal.protocol.work import Moved

MEANS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "grad_norm")


@dataclass(kw_only=True, eq=False, repr=False)
class PPOLearner(TrajectoryLearner):
    """Clipped proximal policy optimization (Schulman et al. 2017, equation 7), with advantages by GAE of the current values.

    A step is update_epochs passes over the unmasked rows, each in num_minibatches parts, shuffled by (seed, updates). The parts
    are of rows, or of whole environments if the policy has memory.
    Metrics are means over all gradient steps of a step, but for two: first_ratio_error is max |ratio - 1| on the first
    minibatch of a step, and explained_variance is that of the values before the step.
    """

    seed: int = 0
    gae_lambda: float = 0.95
    clip_coef: float = 0.2
    ent_coef: float = 0.0
    update_epochs: int = 4
    num_minibatches: int = 4
    norm_adv: bool = True

    def step(self) -> Moved:
        """Make all passes over everything folded. Reading the metrics is one transfer, which waits for the device."""
        batch = self.staging.batch()
        if len(batch.rows) < 2:  # fewer than 2 rows have no spread to divide by
            return Moved(weights=False)
        self.anneal()
        targets, explained = self._targets(batch)
        action = batch.action.flatten(0, 1)
        old_log_prob, target, advantage = (x.flatten() for x in (batch.log_prob, targets.value, targets.advantage))
        told: list[Tensor] = []
        errors: list[Tensor] = []
        for rows, parameters, value in self._minibatches(batch):
            loss, means, ratio = self._loss(
                parameters, value, *(x.index_select(0, rows) for x in (action, old_log_prob, target, advantage))
            )
            errors = errors or [(ratio - 1).abs().max()]
            told.append(torch.stack([*means, self.update(loss)]))
        self.steps += len(batch.rows)
        numbers = torch.cat([torch.stack(told).mean(0), torch.stack([*errors, explained])]).tolist()
        return Moved(dict(zip((*MEANS, "first_ratio_error", "explained_variance"), numbers, strict=True)))

    @torch.no_grad()
    def _targets(self, batch: Batch) -> tuple[Targets, Tensor]:
        _, value_TB, after = self.outputs(batch)
        reward_TB, discount_TB = self.rewards(batch, after)
        targets = gae(reward_TB, discount_TB, value_TB[:-1], value_TB[-1], batch.mask, self.gae_lambda)
        error, target = targets.advantage.flatten()[batch.rows], targets.value.flatten()[batch.rows]
        return targets, 1 - error.var(correction=0) / (target.var(correction=0) + 1e-8)

    def _minibatches(self, batch: Batch) -> Iterator[tuple[Tensor, Parameters, Tensor]]:
        """The rows of each minibatch, indexes of the flattened [T * B], and the policy's action parameters and values there."""
        generator = torch.Generator().manual_seed(draws.key(self.seed, "minibatch", self.updates) % 2**63)
        if batch.first is not None:
            yield from self._sequences(batch, batch.first[:-1], generator)
            return
        observation = every(batch.observation, lambda x: x[:-1].flatten(0, 1))
        for rows in self._parts(batch.rows, generator):
            yield rows, *judged(self.judge, every(observation, methodcaller("index_select", 0, rows)))

    def _parts(self, rows: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        """The rows in another order each epoch, in parts of nearly one size, at least 2: one row has no spread."""
        parts = min(self.num_minibatches, len(rows) // 2)
        for _ in range(self.update_epochs):
            order = torch.randperm(len(rows), generator=generator).to(rows.device)
            yield from rows[order].tensor_split(parts)

    def _sequences(
        self, batch: Batch, first_TB: Tensor, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Parameters, Tensor]]:
        """Minibatches of whole environments in another order each epoch: a policy with memory goes through all rows of an
        environment, and those where mask is False are left out afterwards."""
        T, B = batch.mask.shape
        index_TB = torch.arange(T * B, device=batch.mask.device).view(T, B)
        lived_B = batch.mask.sum(0).cpu()
        for _ in range(self.update_epochs):
            parts = torch.randperm(B, generator=generator).tensor_split(min(self.num_minibatches, B))
            if any(int(lived_B[part].sum()) < 2 for part in parts):  # one row has no spread
                parts = (torch.arange(B),)
            for part in parts:
                columns = part.to(batch.mask.device)
                state = {name: each[columns] for name, each in batch.state.items()}
                seen = every(batch.observation, itemgetter((slice(-1), columns)))
                its = unrolled(self.flat.module, seen, state, first_TB[:, columns])
                kept = batch.mask[:, columns].flatten().nonzero().squeeze(1)
                yield index_TB[:, columns].flatten()[kept], selected(its.parameters, kept), its.value.flatten()[kept]

    def _loss(
        self,
        parameters: Parameters,
        value: Tensor,
        action: Tensor,
        old_log_prob: Tensor,
        target: Tensor,
        advantage: Tensor,
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        chosen, undecided = likelihood(parameters, action)
        log_ratio = chosen - old_log_prob
        ratio = log_ratio.exp()
        if self.norm_adv:
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        clipped = ratio.clamp(1 - self.clip_coef, 1 + self.clip_coef)
        policy_loss = -torch.minimum(ratio * advantage, clipped * advantage).mean()
        value_loss = 0.5 * ((target - value) ** 2).mean()
        mean_entropy = undecided.mean()
        approx_kl = (ratio - 1 - log_ratio).mean()  # the estimator "k3" of Schulman 2020: never negative, of low variance
        beyond = ((ratio - 1).abs() > self.clip_coef).to(ratio.dtype).mean()
        told = [x.detach() for x in (policy_loss, value_loss, mean_entropy, approx_kl, beyond)]
        return policy_loss + self.vf_coef * value_loss - self.ent_coef * mean_entropy, told, ratio.detach()
