"""Settings and parts shared by methods that learn values of actions: DQN, Ape-X and R2D2."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.aggregators import Aggregator
from shoal.jobs.methods.method import Start
from shoal.jobs.methods.off_policy import OffPolicy
from shoal.jobs.problems import Environment, Problem
from shoal.jobs.settings import option, ranges, shown
from shoal.nets.acting import Network
from shoal.nets.q_policy import QNetworks
from shoal.protocol.errors import UserError


@dataclass(frozen=True)
class QLearning(OffPolicy):
    """Settings shared by methods that learn values of actions."""

    lr: float = 5e-4
    max_grad_norm: float = option(10.0, "largest L2 norm of the learner's gradient; a longer one is scaled down to it", above=0)
    double: bool = option(True, "the learned network chooses the action whose value the target network gives (double DQN)")
    dueling: bool = option(False, "the built-in network adds a state's value and each action's advantage (duelling networks)")
    target_update_interval: int = option(250, "gradient steps between two updates of the target network", least=1)
    tau: float = option(
        1.0, "share by which an update moves the target network to the learned one: 1 copies it", above=0, most=1
    )

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if isinstance(problem, Environment) and problem.policy is not None and self.dueling != ranges(self)["dueling"].default:
            given = shown(self.dueling)
            raise UserError(f"dueling={given}: it is for the built-in network, and this job has one of its own; leave it out")

    @property
    def network(self) -> Network:  # type: ignore[override]  # it depends on a setting
        return QNetworks(self.dueling)

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.dqn import DQNLearner

        made = self.arguments(DQNLearner, device=device, seed=start.seed, layout=self.layout(start))
        return DQNLearner(start.module(), **made)
