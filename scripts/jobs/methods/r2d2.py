"""R2D2: values of actions by a network with memory, learned from sequences of a prioritised replay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shoal.aggregators import Aggregator
from shoal.jobs.methods.apex import ApeX
from shoal.jobs.methods.method import Start
from shoal.jobs.problems import Environment, Problem
from shoal.jobs.settings import option
from shoal.nets.acting import Network
from shoal.nets.q_policy import RecurrentQNetworks
from shoal.protocol.errors import UserError


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
