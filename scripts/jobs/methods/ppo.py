"""PPO: synchronous rounds of trajectories, and several passes over the trajectories of each round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shoal.aggregators import Aggregator
from shoal.coordinator.deciding.plans import Asked, Plan
from shoal.coordinator.deciding.plans.overlapped import Overlapped
from shoal.jobs.methods.acting import OnPolicy
from shoal.jobs.methods.method import Start
from shoal.jobs.methods.rhythms import ByRounds
from shoal.jobs.settings import option


@dataclass(frozen=True)
class PPO(OnPolicy, ByRounds):
    """Clipped proximal policy optimization (Schulman et al. 2017)."""

    name: ClassVar[str] = "ppo"

    clients: int = 4
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
    overlap: bool = option(
        False, "the next round is collected while the learner learns from the last, with weights one version older"
    )

    @property
    def continues(self) -> bool:  # type: ignore[override]  # it depends on a setting
        return not self.overlap

    def plan(self, asked: Asked, seed: int, sums: bool) -> Plan:
        if self.overlap:
            return Overlapped(self.clients, evaluate_every=self.eval_every, asked=asked)
        return super().plan(asked, seed, sums)

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.ppo import PPOLearner

        module = start.module()
        self.check_minibatches(module)
        return PPOLearner(module, **self.arguments(PPOLearner, device=device, seed=start.seed))
