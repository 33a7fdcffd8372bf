"""Settings shared by reinforcement-learning methods that learn from a replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.aggregators import Aggregator
from shoal.jobs.methods.acting import Acting
from shoal.jobs.methods.method import Start
from shoal.jobs.problems import Environment, Problem
from shoal.jobs.settings import option
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Layout


@dataclass(frozen=True)
class OffPolicy(Acting):
    """A method whose learner keeps transitions in a replay and makes gradient steps on batches that are drawn from it."""

    num_envs: int = 8
    rollout_length: int = 16
    buffer_size: int = option(
        100_000, "transitions that the replay keeps, in the coordinator's memory: fewer where rows only reset", least=1
    )
    batch_size: int = option(256, "transitions of one gradient step", least=1)
    replay_ratio: float = option(1.0, "gradient steps for each environment step, carried over exactly", least=1e-6)
    learning_starts: int = option(1_000, "environment steps before the first gradient step", least=0)
    n_step: int = option(1, "most rewards that a target adds up before it bootstraps", least=1)
    replay: str = option(
        "uniform",
        "how transitions are drawn: all alike, or in proportion to the size of their last error (prioritized)",
        choices=("uniform", "prioritized"),
    )
    priority_alpha: float = option(
        0.6,
        "exponent of the size of an error in a priority: 0 draws uniformly",
        least=0,
        most=10,
        of={"replay": ("prioritized",)},
    )
    priority_beta: float = option(
        0.4,
        "first exponent of importance weights; it grows linearly to 1 at total_timesteps",
        least=0,
        most=1,
        of={"replay": ("prioritized",)},
    )

    def check(self, problem: Problem) -> None:
        super().check(problem)
        rows = self.num_envs * self.rollout_length
        if self.buffer_size < rows:
            raise UserError(
                f"buffer_size={self.buffer_size}: must hold one trajectory, num_envs x rollout_length = {rows} transitions"
            )

    def notes(self, problem: Problem, aggregator: Aggregator) -> Sequence[str]:
        assert isinstance(problem, Environment)
        nbytes = getattr(aggregator, "replay_bytes", 0)
        told = [
            f"the replay takes up to {nbytes / 1e6:,.1f} MB of the coordinator's memory for {self.buffer_size:,} transitions"
        ]
        steps = max(self.total_timesteps, self.trajectories * self.rollout_length * self.num_envs)  # one version is always made
        if self.replay_ratio * (steps - self.learning_starts) < 1:
            its = f"learning_starts={self.learning_starts} and replay_ratio={self.replay_ratio:g}"
            fix = "give a larger total_timesteps, or a smaller learning_starts"
            told.append(f"no gradient step will be made: the run has {steps:,} environment steps at most, {its}; {fix}")
        return told

    def layout(self, start: Start) -> Layout:
        """The layout of a trajectory as the learner sees it."""
        return self.layouts(start.problem, Layout.of({}))[-1]
