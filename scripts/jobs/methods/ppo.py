"""PPO: synchronous rounds of trajectories, and several passes over the trajectories of each round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shoal.aggregators import Aggregator
from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.plans import Asked, Plan
from shoal.coordinator.deciding.plans.overlapped import Overlapped
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.jobs.methods.acting import FIRST, RENEWED, OnPolicy
from shoal.jobs.methods.method import Start
from shoal.jobs.settings import option
from shoal.nets.acting import Network
from shoal.nets.networks import REMEMBERING


@dataclass(frozen=True)
class PPO(OnPolicy):
    """Clipped proximal policy optimization (Schulman et al. 2017)."""

    name: ClassVar[str] = "ppo"
    network: ClassVar[Network] = REMEMBERING

    clients: int = option(4, "trajectories of one round, each from num_envs environments of its own", least=1)
    gae_lambda: float = option(0.95, "lambda of generalized advantage estimation", least=0, most=1)
    clip_coef: float = option(0.2, "largest distance from 1 of the ratio of probabilities in the clipped loss", above=0)
    update_epochs: int = option(4, "passes over the trajectories of one round", least=1)
    num_minibatches: int = option(4, "minibatches that one pass is divided into, with one gradient step each", least=1)
    norm_adv: bool = option(True, "the advantages of a minibatch are scaled to mean 0 and standard deviation 1")
    clip_range_vf: float = option(
        0.0, "largest distance of a value from the value before the step, as the value loss sees it (0: no bound)", least=0
    )
    target_kl: float = option(
        0.0,
        "KL divergence between the policies before and in a step: the step ends early above 1.5 x target_kl (0: never)",
        least=0,
    )
    renew_every: int = option(0, RENEWED, least=0)
    overlap: bool = option(
        False, "the next round is collected while the learner learns from the last, with weights one version older"
    )

    @property
    def continues(self) -> bool:  # type: ignore[override]  # it depends on a setting
        return not self.overlap

    @property
    def trajectories(self) -> int:
        return self.clients

    def plan(self, asked: Asked, seed: int, sums: bool) -> Plan:
        if self.overlap:
            return Overlapped(self.clients, evaluate_every=self.eval_every, asked=asked)
        evaluators = 1 if self.eval_every else 0
        return Rounds(self.clients, seed=seed, evaluate_every=self.eval_every, evaluate_cohort=evaluators, asked=asked)

    def bounds(self, sums: bool) -> Bounds:
        """Bounds that keep a client with one actor: its environments live in the actor's process."""
        return Bounds(sticky=True, steps=self.rollout_length * self.num_envs, first=FIRST)

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.ppo import PPOLearner

        return PPOLearner(start.module(), **self.arguments(PPOLearner, device=device, seed=start.seed))
