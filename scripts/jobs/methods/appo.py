"""APPO: trajectories on a stream, and several passes over each batch, clipped to a target network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shoal.aggregators import Aggregator
from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.plans import Asked, Plan
from shoal.coordinator.deciding.plans.stream import Stream
from shoal.jobs.methods.acting import FIRST, LAG_WEIGHTS, OnPolicy
from shoal.jobs.methods.method import Start
from shoal.jobs.settings import option
from shoal.nets.acting import Network
from shoal.nets.networks import REMEMBERING


@dataclass(frozen=True)
class APPO(OnPolicy):
    """Asynchronous PPO: IMPACT's clipped surrogate around a target network, with V-trace's targets (Luo et al. 2020)."""

    name: ClassVar[str] = "appo"
    network: ClassVar[Network] = REMEMBERING

    batch: int = option(2, "trajectories that make one step of the learner", least=1)
    max_lag: int = option(8, "largest lag of a trajectory that is used, in versions", least=0)
    lag_weight: str = option(
        "none", "weight of a trajectory in the loss: 1 (none), 1 / sqrt(1 + lag) (sqrt), 1 / (1 + lag) (inverse)",
        choices=LAG_WEIGHTS,
    )  # fmt: skip
    clip_rho: float = option(1.0, "V-trace's upper bound on the importance ratio rho", above=0)
    clip_c: float = option(1.0, "V-trace's upper bound on the importance ratio c", above=0)
    lam: float = option(1.0, "V-trace's lambda, a factor of the ratio c", least=0, most=1)
    vtrace_alpha: float = option(
        1.0, "share of the bounded ratios in rho and c, beside the ratios themselves: below 1 it is leaky V-trace",
        least=0, most=1,
    )  # fmt: skip
    clip_coef: float = option(0.4, "largest distance from 1 of the ratio of probabilities in the clipped loss", above=0)
    target_worker_clipping: float = option(
        2.0, "largest factor by which the target network's probability of an action may be below the actor's in the ratio",
        least=1,
    )  # fmt: skip
    target_update_interval: int = option(
        2, "versions from one copy of the learner's weights to the target network to the next", least=1
    )
    update_epochs: int = option(2, "passes over the trajectories of one step", least=1)
    num_minibatches: int = option(1, "minibatches that one pass is divided into, with one gradient step each", least=1)

    @property
    def trajectories(self) -> int:
        return self.batch

    def plan(self, asked: Asked, seed: int, sums: bool) -> Plan:
        return Stream(self.batch, self.max_lag, seed=seed, evaluate_every=self.eval_every, asked=asked)

    def bounds(self, sums: bool) -> Bounds:
        """Bounds with one task for each actor at a time: a second task would wait, and add one version to every lag."""
        return Bounds(ahead=1, steps=self.rollout_length * self.num_envs, first=FIRST)

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.appo import APPOLearner

        return APPOLearner(start.module(), **self.arguments(APPOLearner, device=device, seed=start.seed))
