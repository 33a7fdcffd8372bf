"""Settings and parts shared by methods whose actor gives actions between bounds: SAC and TD3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shoal.coordinator.deciding.plans import Asked, Plan
from shoal.coordinator.deciding.plans.worded import Worded
from shoal.jobs.methods.method import Start
from shoal.jobs.methods.off_policy import OffPolicy
from shoal.jobs.methods.rhythms import ByRounds
from shoal.jobs.problems import Environment
from shoal.jobs.settings import option
from shoal.nets.continuous import Bounds
from shoal.protocol.work import Task, Words


@dataclass(frozen=True)
class Bounded(OffPolicy, ByRounds):
    """An off-policy method for actions between finite bounds, which a network sees as -1 to 1."""

    num_envs: int = 4
    rollout_length: int = 8
    lr: float = 3e-4
    learning_starts: int = option(
        100, "environment steps before the first gradient step, with actions that are uniform between the bounds", least=0
    )
    tau: float = option(0.005, "share by which an update moves a target network to its network", above=0, most=1)

    def plan(self, asked: Asked, seed: int, sums: bool) -> Plan:
        return Worded(super().plan(asked, seed, sums), self.words)

    def words(self, task: Task) -> Words:
        """The words of a task: `random` while the actors' actions are uniform, a function of the task's version, which says how
        many steps came before."""
        before = task.version * self.clients * self.num_envs * self.rollout_length
        return {"random": True} if before < self.learning_starts else {}

    def parts(self, start: Start) -> dict[str, Any]:
        """The arguments of a learner that follow from the problem and the seed."""
        problem = start.problem
        assert isinstance(problem, Environment)
        return {
            "layout": self.layout(start),
            "spaces": problem.shown(),
            "pictures": problem.form.pictures,
            "precision": problem.form.precision,
            "bounds": Bounds.of(problem.spaces(), self.name),
            "hidden": problem.form.hidden,
            "activation": problem.form.activation,
            "seed": start.seed,
        }
