"""IMPALA: trajectories on a stream. V-trace corrects for the lag of the weights that a trajectory was made from."""

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
class IMPALA(OnPolicy):
    """V-trace actor-critic (Espeholt et al. 2018): actors never wait for the learner."""

    name: ClassVar[str] = "impala"
    network: ClassVar[Network] = REMEMBERING

    batch: int = option(2, "trajectories that make one step of the learner", least=1)
    max_lag: int = option(8, "largest lag of a trajectory that is used, in versions", least=0)
    lag_weight: str = option(
        "none", "weight of a trajectory in the loss: 1 (none), 1 / sqrt(1 + lag) (sqrt), 1 / (1 + lag) (inverse)",
        choices=LAG_WEIGHTS,
    )  # fmt: skip
    ahead: int = option(
        1,
        "trajectories that an actor is asked for at once; with 2 it never waits for the next, and lags are twice as large",
        least=1,
        most=8,
    )
    clip_rho: float = option(1.0, "V-trace's upper bound on the importance ratio rho", above=0)
    clip_c: float = option(1.0, "V-trace's upper bound on the importance ratio c", above=0)
    lam: float = option(1.0, "V-trace's lambda, a factor of the ratio c", least=0, most=1)
    vtrace_alpha: float = option(
        1.0, "share of the bounded ratios in rho and c, beside the ratios themselves: below 1 it is leaky V-trace",
        least=0, most=1,
    )  # fmt: skip
    num_minibatches: int = option(
        1, "parts of a version's environments, with one gradient step each: many environments need several", least=1
    )
    tune_envs: bool = option(
        True, "a num_envs that nobody set is chosen by a short trial before the run, if the run has actors of its own machine"
    )

    @property
    def trajectories(self) -> int:
        return self.batch

    def plan(self, asked: Asked, seed: int, sums: bool) -> Plan:
        return Stream(self.batch, self.max_lag, seed=seed, evaluate_every=self.eval_every, asked=asked)

    def bounds(self, sums: bool) -> Bounds:
        """Bounds with `ahead` tasks for each actor: a second task waits, and adds the other actors' versions to every lag."""
        return Bounds(ahead=self.ahead, steps=self.rollout_length * self.num_envs, first=FIRST)

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.impala import IMPALALearner

        return IMPALALearner(start.module(), **self.arguments(IMPALALearner, device=device))
