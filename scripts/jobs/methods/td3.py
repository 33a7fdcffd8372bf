"""TD3: a deterministic actor that explores by noise, and critics that learn from a replay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shoal.aggregators import Aggregator
from shoal.jobs.methods.bounded import Bounded
from shoal.jobs.methods.method import Start
from shoal.jobs.settings import option
from shoal.nets.acting import Network
from shoal.nets.continuous import Deterministic
from shoal.protocol.work import Task, Words


@dataclass(frozen=True)
class TD3(Bounded):
    """Twin delayed deep deterministic policy gradient for actions between bounds (Fujimoto et al. 2018)."""

    name: ClassVar[str] = "td3"
    network: ClassVar[Network] = Deterministic()

    lr: float = 1e-3
    exploration_noise: float = option(
        0.1, "standard deviation of the noise on the actors' actions, of which the bounds are -1 and 1", least=0
    )
    policy_noise: float = option(
        0.2, "standard deviation of the noise on the actions of the critics' targets, of which the bounds are -1 and 1", least=0
    )
    noise_clip: float = option(0.5, "largest size of the noise on the actions of the critics' targets", least=0)
    policy_delay: int = option(2, "gradient steps of the critics for each one of the actor", least=1)

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.td3 import TD3Learner

        return TD3Learner(start.module(), **self.arguments(TD3Learner, device=device, **self.parts(start)))

    def words(self, task: Task) -> Words:
        return {**super().words(task), "noise": self.exploration_noise}
