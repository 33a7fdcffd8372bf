"""A2C: synchronous rounds of short trajectories, and one gradient step for each round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shoal.aggregators import Aggregator
from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.plans import Asked, Plan
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.jobs.methods.acting import FIRST, OPTIMIZERS, RENEWED, OnPolicy
from shoal.jobs.methods.method import Start
from shoal.jobs.settings import option
from shoal.nets.acting import Network
from shoal.nets.networks import REMEMBERING


@dataclass(frozen=True)
class A2C(OnPolicy):
    """Advantage actor-critic (Mnih et al. 2016), with the paper's 16 environments of 5 steps and SB3's optimizer."""

    name: ClassVar[str] = "a2c"
    network: ClassVar[Network] = REMEMBERING
    continues: ClassVar[bool] = True

    num_envs: int = option(8, "number of environments that one trajectory comes from", least=1)
    rollout_length: int = option(5, "steps of each environment in one trajectory", least=1)
    lr: float = option(7e-4, "learning rate of the learner's optimizer", above=0)
    vf_coef: float = option(1.0, "weight of the value loss in the loss; a value loss is half a squared error", least=0)
    optimizer: str = option("rmsprop", "optimizer of the learner", choices=OPTIMIZERS)
    rms_prop_eps: float = option(
        1e-5, "number that RMSprop adds to the root of its mean square", above=0, of={"optimizer": ("rmsprop",)}
    )
    renew_every: int = option(0, RENEWED, least=0)
    clients: int = option(2, "trajectories of one round, each from num_envs environments of its own", least=1)
    gae_lambda: float = option(
        1.0, "lambda of generalized advantage estimation (1: returns up to the end of the trajectory)", least=0, most=1
    )
    norm_adv: bool = option(False, "the advantages of a step are scaled to mean 0 and standard deviation 1")

    @property
    def trajectories(self) -> int:
        return self.clients

    def plan(self, asked: Asked, seed: int, sums: bool) -> Plan:
        evaluators = 1 if self.eval_every else 0
        return Rounds(self.clients, seed=seed, evaluate_every=self.eval_every, evaluate_cohort=evaluators, asked=asked)

    def bounds(self, sums: bool) -> Bounds:
        """Bounds that keep a client with one actor: its environments live in the actor's process."""
        return Bounds(sticky=True, steps=self.rollout_length * self.num_envs, first=FIRST)

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.a2c import A2CLearner

        return A2CLearner(start.module(), **self.arguments(A2CLearner, device=device))
