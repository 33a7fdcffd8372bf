"""APPO: trajectories on a stream, and several passes over each batch, clipped to a target network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shoal.aggregators import Aggregator
from shoal.jobs.methods.method import Start
from shoal.jobs.methods.vtraced import VTraced
from shoal.jobs.settings import option


@dataclass(frozen=True)
class APPO(VTraced):
    """Asynchronous PPO: IMPACT's clipped surrogate around a target network, with V-trace's targets (Luo et al. 2020)."""

    name: ClassVar[str] = "appo"

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

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.appo import APPOLearner

        module = start.module()
        self.check_minibatches(module)
        return APPOLearner(module, **self.arguments(APPOLearner, device=device, seed=start.seed))
