"""The rhythms in which trajectories make a version: in rounds, for which all actors wait, or on a stream, for which none does.

The one idea: the rhythm is a part that methods have in common, so a method says only what it learns. It stands behind the
method's other base, `class Mine(OnPolicy, ByRounds)`, because the defaults of that one count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.plans import Asked, Plan
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.coordinator.deciding.plans.stream import Stream
from shoal.jobs.methods.acting import FIRST, Acting
from shoal.jobs.settings import option


@dataclass(frozen=True)
class ByRounds(Acting):
    """A method whose gradient steps follow each round: with one client the classical loop of acting and learning."""

    continues: ClassVar[bool] = True

    renew_every: int = option(
        0, "versions after which all training environments begin new episodes, as in a resumed run (0: they never do)", least=0
    )
    clients: int = option(1, "trajectories of one round, each from num_envs environments of its own", least=1)

    @property
    def trajectories(self) -> int:
        return self.clients

    def plan(self, asked: Asked, seed: int, sums: bool) -> Plan:
        evaluators = 1 if self.eval_every else 0
        return Rounds(self.clients, seed=seed, evaluate_every=self.eval_every, evaluate_cohort=evaluators, asked=asked)

    def bounds(self, sums: bool) -> Bounds:
        """Bounds that keep a client with one actor: its environments live in the actor's process."""
        return Bounds(sticky=True, steps=self.rollout_length * self.num_envs, first=FIRST)


@dataclass(frozen=True)
class OnStream(Acting):
    """A method that makes a step as soon as `batch` trajectories have come, of whatever actors and of weights not too old."""

    batch: int = option(2, "trajectories that make one step of the learner", least=1)
    max_lag: int = option(8, "largest lag of a trajectory that is used, in versions", least=0)

    @property
    def trajectories(self) -> int:
        return self.batch

    @property
    def tasks(self) -> int:
        """Tasks that an actor has at one time. A second one waits, and adds the other actors' versions to every lag."""
        return 1

    def plan(self, asked: Asked, seed: int, sums: bool) -> Plan:
        return Stream(self.batch, self.max_lag, seed=seed, evaluate_every=self.eval_every, asked=asked)

    def bounds(self, sums: bool) -> Bounds:
        return Bounds(ahead=self.tasks, steps=self.rollout_length * self.num_envs, first=FIRST)
