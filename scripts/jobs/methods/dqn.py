"""DQN: values of actions, learned from a replay, in rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shoal.coordinator.deciding.plans import Asked, Plan
from shoal.coordinator.deciding.plans.worded import Worded
from shoal.jobs.methods.q_learning import QLearning
from shoal.jobs.methods.rhythms import ByRounds
from shoal.jobs.settings import option
from shoal.protocol.work import Task, Words


@dataclass(frozen=True)
class DQN(QLearning, ByRounds):
    """Deep Q-learning in rounds (Mnih et al. 2015): each round's transitions go into the replay, then gradient steps are
    made."""

    name: ClassVar[str] = "dqn"

    exploration_initial_eps: float = option(1.0, "first probability of a random action", least=0, most=1)
    exploration_final_eps: float = option(0.05, "last probability of a random action", least=0, most=1)
    exploration_fraction: float = option(
        0.1, "part of total_timesteps over which the probability of a random action falls linearly", above=0, most=1
    )

    def plan(self, asked: Asked, seed: int, sums: bool) -> Plan:
        return Worded(super().plan(asked, seed, sums), self.words)

    def words(self, task: Task) -> Words:
        """The word `epsilon` of a task: a function of its version, which says how many steps came before."""
        before = task.version * self.clients * self.num_envs * self.rollout_length
        share = min(1.0, before / (self.exploration_fraction * self.total_timesteps))
        first, last = self.exploration_initial_eps, self.exploration_final_eps
        return {"epsilon": first + share * (last - first)}
