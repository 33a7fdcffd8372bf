"""IMPALA: a learner that makes one pass over the trajectories that have come in, in one gradient step or a few.

The one idea: actors never wait for the learner. A trajectory was made with slightly older weights, and V-trace corrects for
that, so every trajectory is used once, as it comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import fsum

import numpy as np
import torch
from torch import Tensor

from shoal.aggregators.by_environment import Coefficients, Rows, fitting
from shoal.aggregators.descent import TrajectoryLearner
from shoal.aggregators.ratios import WEIGHTS, effective
from shoal.aggregators.staging import Batch
from shoal.aggregators.vtrace import vtrace
from shoal.nets.policies import first_rows, likelihood
from shoal.protocol.work import Moved

METRICS = ("policy_loss", "value_loss", "entropy", "rho_mean", "explained_variance", "ess", "grad_norm")


@dataclass(kw_only=True, eq=False, repr=False)
class IMPALALearner(TrajectoryLearner):
    """V-trace actor-critic (Espeholt et al. 2018) over whole trajectories.

    With mu the actor's policy, pi the learner's and V its values, rho_t = min(clip_rho, pi(a_t|x_t) / mu(a_t|x_t)) and c_t =
    lam min(clip_c, pi(a_t|x_t) / mu(a_t|x_t)), equation 1 gives the value targets

        v_s = V(x_s) + sum over t >= s of gamma^(t-s) (c_s ... c_(t-1)) rho_t (r_t + gamma V(x_(t+1)) - V(x_t)),

    and section 4.2 the loss, policy_loss + vf_coef value_loss - ent_coef entropy, by means over the rows s where mask is True:

        policy_loss = -mean rho_s (r_s + gamma v_(s+1) - V(x_s)) log pi(a_s|x_s), of which only log pi is differentiated,
        value_loss = 1/2 mean (v_s - V(x_s))^2, of which only V(x_s) is differentiated,
        entropy = -mean sum over a of pi(a|x_s) log pi(a|x_s).

    vtrace_alpha: below 1 it is leaky V-trace (aggregators/vtrace.py). lag_weight: the function of WEIGHTS
    (aggregators/ratios.py) by which a trajectory's rows count in the descended loss; "none": all rows count alike. The losses
    that are told are without these weights.
    num_minibatches: gradient steps of a version, each over as many environments. V-trace corrects for the steps before it, as
    for any other lag. Metrics are means over these steps.
    fast: makes the gradient of the built-in policy without autograd (aggregators/by_environment.py); None: it cannot. alike:
    True if its first gradient was autograd's; None: not compared yet.
    """

    clip_rho: float = 1.0
    clip_c: float = 1.0
    lam: float = 1.0
    vtrace_alpha: float = 1.0
    lag_weight: str = "none"
    num_minibatches: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.fast = fitting(self.judge)
        self.alike: bool | None = None

    def step(self) -> Moved:
        """Make one pass over everything folded. Reading the metrics of a gradient step is one transfer, which waits for the
        device."""
        batch = self.staging.batch()
        self.anneal()
        told = [self._descent(part) for part in self._parts(batch)]
        self.steps += len(batch.rows)
        means = [fsum(each) / len(told) for each in zip(*told, strict=True)]
        return Moved(dict(zip(METRICS, means, strict=True)))

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        """Minibatches of whole environments, whose numbers of environments differ by at most 1."""
        envs = batch.mask.shape[1]
        many = min(self.num_minibatches, envs)
        if many == 1:
            yield batch
            return
        for part in range(many):
            yield batch.part(part * envs // many, (part + 1) * envs // many)

    def _descent(self, batch: Batch) -> list[float]:
        """Make one gradient step, and return its metrics."""
        told = self._by_environment(batch)
        if told is None:
            loss, figures = self._loss(batch)
            told = torch.stack([*figures, self.update(loss)]).tolist()
        return told

    def _by_environment(self, batch: Batch) -> list[float] | None:
        """Make the step without autograd, and return its metrics; None if the policy or the batch is not for that, or if the
        gradient of the first batch was not autograd's."""
        if self.fast is None or self.alike is False or not isinstance(batch.observation, Tensor):
            return None
        expected: Tensor | None = None
        if self.alike is None:
            self.flat.grad.zero_()
            self._loss(batch)[0].backward()  # type: ignore[no-untyped-call]
            expected = self.flat.grad.clone()
        self.flat.grad.zero_()
        rows = self._rows(batch)
        by = Coefficients(self.clip_rho, self.clip_c, self.vtrace_alpha, self.ent_coef, self.vf_coef)
        told = self.fast.descend(rows, by)
        if expected is not None:
            off = (self.flat.grad - expected).norm() <= 1e-3 * expected.norm() + 1e-8
            self.alike = bool(off) or not bool(expected.isfinite().all())
            if not self.alike:
                return None
        return [*told.metrics(rows.many), float(self.descended())]

    def _rows(self, batch: Batch) -> Rows:
        reward, discount = (each.where(batch.mask, 0.0).numpy() for each in self.rewards(batch))
        live = batch.mask.to(torch.float32).numpy()
        weight = WEIGHTS[self.lag_weight](batch.lag).numpy() if self.lag_weight in WEIGHTS else None
        assert isinstance(batch.observation, Tensor)
        action, log_prob = batch.action.numpy(), batch.log_prob.where(batch.mask, 0.0).numpy()
        decay, many = discount * np.float32(self.lam), max(1, len(batch.rows))
        return Rows(batch.observation, action, log_prob, reward, discount, decay * live, live, weight, many)

    def _loss(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        parameters, value_TB, after = self.outputs(batch)
        acting = first_rows(parameters, batch.mask.numel())  # without the last observation, which no action followed
        chosen, undecided = likelihood(acting, batch.action.flatten(0, 1))
        log_prob_TB = chosen.view_as(batch.mask)
        rho_TB = (log_prob_TB.detach() - batch.log_prob).exp()
        reward_TB, discount_TB = self.rewards(batch, after)
        known_TB, clips = value_TB.detach(), (self.clip_rho, self.clip_c, self.lam, self.vtrace_alpha)
        targets = vtrace(rho_TB, reward_TB, discount_TB, known_TB[:-1], known_TB[-1], batch.mask, *clips)
        rows = max(1, len(batch.rows))

        def mean(x_TB: Tensor) -> Tensor:
            return x_TB.where(batch.mask, 0.0).sum() / rows

        gain_TB, error_TB = log_prob_TB * targets.advantage, (targets.value - value_TB[:-1]) ** 2
        entropy_TB = undecided.view_as(batch.mask)
        policy_loss, value_loss, mean_entropy = -mean(gain_TB), 0.5 * mean(error_TB), mean(entropy_TB)
        spread = mean((targets.value - mean(targets.value)) ** 2)
        share = effective(rho_TB, batch.mask)
        told = [x.detach() for x in (policy_loss, value_loss, mean_entropy)]
        told += [mean(rho_TB), 1 - 2 * told[1] / (spread + 1e-8), share]
        if self.lag_weight in WEIGHTS:
            weight_B = WEIGHTS[self.lag_weight](batch.lag)
            policy_loss, value_loss, mean_entropy = (
                -mean(weight_B * gain_TB), 0.5 * mean(weight_B * error_TB), mean(weight_B * entropy_TB)
            )  # fmt: skip
        return policy_loss + self.vf_coef * value_loss - self.ent_coef * mean_entropy, told
