"""Ape-X: values of actions, learned from a prioritised replay that actors fill on a stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shoal.coordinator.deciding.plans import Asked, Plan
from shoal.coordinator.deciding.plans.worded import Worded
from shoal.jobs.methods.q_learning import QLearning
from shoal.jobs.methods.rhythms import OnStream
from shoal.jobs.settings import option
from shoal.nets.acting import Network
from shoal.nets.q_policy import QNetworks
from shoal.protocol.work import Task, Words


@dataclass(frozen=True)
class ApeX(QLearning, OnStream):
    """Ape-X DQN (Horgan et al. 2018): actors never wait, each environment explores by an epsilon of its own, and the replay is
    prioritised, at first by what the actors believed."""

    name: ClassVar[str] = "apex"

    replay: str = "prioritized"
    dueling: bool = True
    n_step: int = 3
    batch: int = 1
    max_lag: int = 100
    epsilon: float = option(0.4, "base of the probabilities of a random action", least=0, most=1)
    ladder: float = option(
        7.0, "environment i of B acts at random with probability epsilon to the power 1 + ladder * i / (B - 1)", least=0
    )

    @property
    def network(self) -> Network:  # type: ignore[override]  # it depends on settings
        return QNetworks(self.dueling, believes=self.replay == "prioritized")

    @property
    def tasks(self) -> int:
        return 2  # so that no actor waits: an old trajectory serves as well

    def plan(self, asked: Asked, seed: int, sums: bool) -> Plan:
        return Worded(super().plan(asked, seed, sums), self.words)

    def words(self, task: Task) -> Words:
        return {"epsilon": self.epsilon, "ladder": self.ladder}
