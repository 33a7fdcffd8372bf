"""A2C: synchronous rounds of short trajectories, and one gradient step for each round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shoal.aggregators import Aggregator
from shoal.jobs.methods.acting import OnPolicy
from shoal.jobs.methods.method import Start
from shoal.jobs.methods.rhythms import ByRounds
from shoal.jobs.problems import Problem
from shoal.jobs.settings import option
from shoal.protocol.errors import UserError


@dataclass(frozen=True)
class A2C(OnPolicy, ByRounds):
    """Advantage actor-critic (Mnih et al. 2016), with the paper's 16 environments of 5 steps and SB3's optimizer."""

    name: ClassVar[str] = "a2c"

    num_envs: int = 8
    rollout_length: int = 5
    lr: float = 7e-4
    vf_coef: float = option(1.0, "weight of the value loss in the loss; a value loss is half a squared error", least=0)
    optimizer: str = "rmsprop"
    rms_prop_eps: float = 1e-5
    clients: int = 2
    gae_lambda: float = option(
        1.0, "lambda of generalized advantage estimation (1: returns up to the end of the trajectory)", least=0, most=1
    )
    norm_adv: bool = option(False, "the advantages of a step are scaled to mean 0 and standard deviation 1")

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if self.norm_adv and self.clients * self.num_envs * self.rollout_length < 2:
            raise UserError("norm_adv=true: a step learns from 1 row, which has no spread to divide by; norm_adv=false")

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.a2c import A2CLearner

        return A2CLearner(start.module(), **self.arguments(A2CLearner, device=device))
