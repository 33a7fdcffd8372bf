"""ES: rounds of perturbed policies, of which only seeds and returns travel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from shoal.actors import Worker
from shoal.actors.workers.rollout import Rollout
from shoal.aggregators import Aggregator
from shoal.coordinator.deciding.bounds import Bounds, Goal
from shoal.coordinator.deciding.plans import Asked, Plan
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.envs.agents import Parallel
from shoal.jobs.methods.acting import FIRST, Playing
from shoal.jobs.methods.method import Start
from shoal.jobs.problems import Environment, Problem
from shoal.jobs.settings import option
from shoal.nets.pictures import deep
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Layout

NO_CENTRAL = "the policies of method=es have weights of their own, one for each episode"


@dataclass(frozen=True)
class ES(Playing):
    """Evolution strategies (Salimans et al. 2017): no gradient, no value, no log probability."""

    name: ClassVar[str] = "es"

    total_timesteps: int = option(500_000, "environment steps of counted episodes after which the run ends", least=1)
    clients: int = option(4, "contributions of one round", least=1)
    pairs: int = option(
        16, "mirrored pairs of perturbed policies of one contribution, which play an episode each, side by side", least=1
    )
    sigma: float = option(0.1, "standard deviation of the noise on the weights", above=0)
    lr: float = option(0.05, "learning rate of the learner's optimizer, Adam", above=0)
    weight_decay: float = option(0.005, "factor of the weights that is added to the gradient", least=0)

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if isinstance(problem, Environment) and problem.inference != "actor":
            raise UserError(f"inference={problem.inference}: {NO_CENTRAL}; leave it at inference=actor")
        if isinstance(problem, Environment) and problem.compile_policy:
            raise UserError(f"compile_policy=true: {NO_CENTRAL}; leave it out")
        if isinstance(problem, Environment) and problem.double_buffer:
            raise UserError(f"double_buffer=true: {NO_CENTRAL}; leave it at double_buffer=false")
        if isinstance(problem, Environment) and problem.policy is not None:
            raise UserError(
                "method=es: perturbs the built-in policy; leave policy out (hidden=64,64 sets its size) or method=ppo"
            )
        if isinstance(problem, Environment) and isinstance(problem.env, Parallel) and problem.env.policies == "separate":
            raise UserError("policies='separate': method=es perturbs one network; policies='shared', or method=ppo")
        if isinstance(problem, Environment) and (many := problem.frame_stack) > 1:
            raise UserError(f"frame_stack={many}: es stacks no frames; gymnasium.wrappers.FrameStackObservation does")

    def goal(self) -> Goal:
        return Goal(steps=self.total_timesteps)

    def plan(self, asked: Asked, seed: int, sums: bool) -> Plan:
        evaluators = 1 if self.eval_every else 0
        return Rounds(self.clients, seed=seed, evaluate_every=self.eval_every, evaluate_cohort=evaluators, asked=asked)

    def bounds(self, sums: bool) -> Bounds:
        return Bounds(first=FIRST)

    def layouts(self, problem: Problem, weights: Layout) -> Sequence[Layout]:
        from shoal.actors.workers.evolution import layout

        return [layout(self.pairs)]

    def worker(self, problem: Problem, seed: int) -> Worker:
        from shoal.actors.workers.evolution import Evolution

        assert isinstance(problem, Environment)
        if deep(problem.spaces(), problem.network):
            flat = "" if problem.network == "impala" else "network=mlp flattens them, or "
            raise UserError(
                f"method=es: perturbs a perceptron, and the environment's observations are pictures; {flat}method=ppo"
            )
        worlds, episodes = problem.worlds(), max(1, self.eval_episodes)
        judge = Rollout(worlds, problem.acts(seed), 1, min(32, episodes), seed, episodes)
        return Evolution(worlds, problem.activation, self.pairs, self.sigma, seed, judge)

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.es import ESLearner

        return ESLearner(start.weights, **self.arguments(ESLearner))
