"""The worker of evolution strategies: plays an episode with each of many perturbed policies, and returns their returns.

The one idea: a task is a function of weights, client and version alone. Its noises and its episodes' beginnings are drawn from
their numbers, so any actor may do it, a repeat has the same bits, and seeds stand for all that would have to travel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.actors import Worker
from shoal.actors.workers.rollout import SEEDS
from shoal.envs.spaces import legal
from shoal.envs.vector import Worlds
from shoal.nets.perturbed import Perturbed, acting, noise
from shoal.protocol.draws import globally, key
from shoal.protocol.errors import UserError, within
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.work import Task, Work


def layout(pairs: int) -> Layout:
    """The layout of a contribution. seed: int64 [pairs], of each pair's noise. fitness: float64 [pairs, 2], the returns of the
    episodes with weights + sigma * noise and with weights - sigma * noise. probe: float32 [pairs], the noise's first entry, by
    which the learner sees that it makes the same noise."""
    return Layout.of({"fitness": ("f8", (pairs, 2)), "seed": ("i8", (pairs,)), "probe": ("f4", (pairs,))})


@dataclass(eq=False, repr=False)
class Evolution:
    """A worker that plays one episode with each of 2 * pairs perturbed policies, side by side. Each policy takes the likeliest
    action that the environment's action mask allows, or of all actions if there is no mask.

    make_envs: num_envs -> Envs. activation: of the built-in policy. judge: the worker of tasks of the kind "evaluate".
    longest: number of steps at which an episode is a UserError.

    Work of training: bundle as `layout` says; steps, those of these episodes (an environment whose episode has ended is stepped
    on until the last one ends; those steps do not count); samples "return" and "length" of the episodes; total "env_replaced",
    if any. An episode that is lost with its environment's process counts with the rewards until then.
    """

    make_envs: Callable[[int], Worlds]
    activation: str
    pairs: int
    sigma: float
    seed: int
    judge: Worker
    longest: int = 100_000
    _stage: Worlds | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        within("pairs", self.pairs, first=1)

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        if task.kind == "evaluate":
            return self.judge.run(weights, client, task, brief)
        seeds = [key(self.seed, "noise", client, task.version, i) % 2**63 for i in range(self.pairs)]
        size = sum(weights[name].size for name in acting(weights.layout))
        noises = np.stack([noise(seed, size) for seed in seeds])
        policies = Perturbed(weights, noises, self.sigma, self.activation)
        with globally(self.seed, "es made"):
            stage, self._stage = self._stage or self.make_envs(2 * self.pairs), None
        try:
            with globally(self.seed, "es steps", client, task.version):
                returns, lengths, replaced = self._played(stage, policies, key(self.seed, "es", client, task.version) % SEEDS)
        except BaseException:
            stage.close()
            raise
        self._stage = stage  # not before: after a failure half-way it is made anew
        bundle = Bundle.zeros(layout(self.pairs))
        bundle["seed"][...], bundle["probe"][...] = seeds, noises[:, 0]
        bundle["fitness"][...] = returns.reshape(2, self.pairs).T
        return Work(
            bundle,
            totals={"env_replaced": (float(replaced), 1.0)} if replaced else {},
            samples={"return": tuple(returns.tolist()), "length": tuple(float(x) for x in lengths)},
            steps=int(lengths.sum()),
        )

    def close(self) -> None:
        """Close every environment."""
        if self._stage is not None:
            self._stage.close()
            self._stage = None
        if hasattr(self.judge, "close"):
            self.judge.close()

    def _played(self, envs: Worlds, policies: Perturbed, seed: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any], int]:
        """The return and length of the first episode of each environment, [2 * pairs], and the number of processes replaced."""
        actions, step = envs.spaces.action, envs.reset(seed)
        returns, lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs, np.int64)
        running, replaced, steps = np.ones(envs.num_envs, bool), step.replaced, 0
        while running.any():
            numbers = legal(actions, policies.parameters(step.observation), step.observation)
            step = envs.step(actions.act(numbers, None))
            counts = running & step.lived
            returns += np.where(counts, step.reward, 0.0)
            lengths += counts
            running &= ~step.over
            replaced, steps = replaced + step.replaced, steps + 1
            if steps >= self.longest and running.any():
                raise UserError(
                    f"an episode goes on after {self.longest:,} steps: "
                    "give the environment a time limit (gymnasium.wrappers.TimeLimit)"
                )
        return returns, lengths, replaced
