"""IMPALA: trajectories on a stream. V-trace corrects for the lag of the weights that a trajectory was made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shoal.aggregators import Aggregator
from shoal.jobs.methods.method import Start
from shoal.jobs.methods.vtraced import VTraced
from shoal.jobs.settings import option


@dataclass(frozen=True)
class IMPALA(VTraced):
    """V-trace actor-critic (Espeholt et al. 2018): actors never wait for the learner."""

    name: ClassVar[str] = "impala"
    undivided: ClassVar[bool] = True

    ahead: int = option(
        1,
        "trajectories that an actor is asked for at once; with 2 it never waits for the next, and lags are twice as large",
        least=1,
        most=8,
    )
    num_minibatches: int = option(
        1, "parts of a version's environments, with one gradient step each: many environments need several", least=1
    )

    @property
    def tasks(self) -> int:
        return self.ahead

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.impala import IMPALALearner

        module = start.module()
        self.check_minibatches(module)
        return IMPALALearner(module, **self.arguments(IMPALALearner, device=device))
