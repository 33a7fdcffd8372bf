"""SAC: an actor that is paid for its entropy, and critics that learn from a replay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shoal.aggregators import Aggregator
from shoal.jobs.methods.bounded import Bounded
from shoal.jobs.methods.method import Start
from shoal.jobs.settings import option
from shoal.nets.acting import Network
from shoal.nets.continuous import Squashed


@dataclass(frozen=True)
class SAC(Bounded):
    """Soft actor-critic for actions between bounds (Haarnoja et al. 2018)."""

    name: ClassVar[str] = "sac"
    network: ClassVar[Network] = Squashed()

    autotune: bool = option(True, "the weight of the entropy (alpha) is learned, so that the entropy becomes -1 nat an action")
    alpha: float = option(0.2, "weight of the entropy beside the return", least=0, of={"autotune": ("false",)})

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.sac import SACLearner

        return SACLearner(start.module(), **self.arguments(SACLearner, device=device, **self.parts(start)))
