"""DQN and Ape-X: values of actions, learned from a replay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shoal.aggregators import Aggregator
from shoal.coordinator.deciding.plans import Asked, Plan
from shoal.coordinator.deciding.plans.worded import Worded
from shoal.jobs.methods.method import Start
from shoal.jobs.methods.off_policy import OffPolicy
from shoal.jobs.methods.rhythms import ByRounds, OnStream
from shoal.jobs.problems import Environment, Problem
from shoal.jobs.settings import option
from shoal.nets.acting import Network
from shoal.nets.q_policy import QNetworks, RecurrentQNetworks
from shoal.protocol.errors import UserError
from shoal.protocol.work import Task, Words


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

    @property
    def network(self) -> Network:  # type: ignore[override]  # it depends on a setting
        return QNetworks(self.dueling)

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.dqn import DQNLearner

        made = self.arguments(DQNLearner, device=device, seed=start.seed, layout=self.layout(start))
        return DQNLearner(start.module(), **made)


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


@dataclass(frozen=True)
class R2D2(ApeX):
    """R2D2 (Kapturowski et al. 2019): Ape-X with a network that has memory, learned from sequences in the state that the actor
    had."""

    name: ClassVar[str] = "r2d2"

    rollout_length: int = option(40, "steps of each environment in one trajectory, which is a sequence of the replay", least=2)
    batch_size: int = option(32, "sequences of one gradient step, each of one environment in one trajectory", least=1)
    replay_ratio: float = 0.05
    returns: str = option(
        "n_step",
        "what a target adds up: n_step rewards (n_step), or rewards for as long as the actor's actions are the greedy ones "
        "(retrace)",
        choices=("n_step", "retrace"),
    )
    n_step: int = option(5, "most rewards that a target adds up before it bootstraps", least=1, of={"returns": ("n_step",)})
    retrace_lambda: float = option(
        0.95, "factor of what a target adds up, for each row that it lies ahead", least=0, most=1,
        of={"returns": ("retrace",)},
    )  # fmt: skip
    gamma: float = 0.997
    priority_alpha: float = 0.9
    priority_beta: float = 0.6
    burn_in: int = option(10, "rows at the begin of a sequence that only carry the stored state on", least=0)
    eta: float = option(0.9, "weight of a sequence's largest error in its priority, beside its mean error", least=0, most=1)

    @property
    def network(self) -> Network:  # type: ignore[override]  # it depends on a setting
        return RecurrentQNetworks(self.dueling)

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if self.burn_in >= self.rollout_length:
            most = self.rollout_length - 1
            raise UserError(f"burn_in={self.burn_in}: must be at most rollout_length - 1 = {most}, or nothing is learned")
        if isinstance(problem, Environment) and (many := problem.frame_stack) > 1:
            raise UserError(f"frame_stack={many}: r2d2 remembers what it saw, and stacks no frames; method=apex does")

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.r2d2 import R2D2Learner

        made = self.arguments(R2D2Learner, device=device, seed=start.seed, layout=self.layout(start))
        return R2D2Learner(start.module(), **made)
