"""The worker of self-play: a rollout whose environments are games of two, of which another policy plays one side.

The one idea: seen from the learner's side, the opponent is a part of the environment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from shoal.actors.workers.rollout import Rollout
from shoal.envs.spaces import Array
from shoal.envs.vector import Step, Worlds
from shoal.nets.acting import Policy
from shoal.protocol.draws import key
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Work


class Duel:
    """B games of two agents, seen by one agent of each: the first agent in games of even number, the second in the others.

    both: the games as 2 * B rows (envs/agents.py). opponent: plays the other rows, and draws its actions as the learner does.
    """

    def __init__(self, both: Worlds, opponent: Policy) -> None:
        self.both, self.opponent = both, opponent
        self.num_envs, self.spaces = both.num_envs // 2, both.spaces
        game = np.arange(self.num_envs)
        self.ours = 2 * game + game % 2
        self.theirs = 2 * game + 1 - game % 2
        self.rng = np.random.Generator(np.random.Philox(key=0))

    def reset(self, seed: int, shares: Array | None = None) -> Step:
        self.rng = np.random.Generator(np.random.Philox(key=key(seed, "duel")))
        self.state = self.opponent.begin(self.num_envs)
        return self._of(self.both.reset(seed))

    def step(self, action: Array) -> Step:
        noise = self.opponent.noise(self.rng, 1, self.num_envs)[0]
        answer = self.opponent.act(self.step_seen, self.first, self.state, noise, {})
        self.state = answer.state
        whole = np.empty((self.both.num_envs, *action.shape[1:]), action.dtype)
        whole[self.ours], whole[self.theirs] = action, answer.action
        return self._of(self.both.step(whole))

    def close(self) -> None:
        self.both.close()

    def _of(self, step: Step) -> Step:
        """The step as our agents see it. What the opponents see is kept for their next answer."""
        self.step_seen, self.first = step.observation[self.theirs].copy(), step.first[self.theirs].copy()
        final = None if step.final is None else step.final[self.ours]
        ours = {name: getattr(step, name)[self.ours] for name in ("observation", "mask", "reward", "terminated", "truncated")}
        return Step(**ours, lived=step.lived[self.ours], first=step.first[self.ours], final=final, replaced=step.replaced)


@dataclass(eq=False, repr=False)
class Duelling:
    """A rollout against the opponent whose weights are the task's brief; without a brief, against the weights themselves."""

    rollout: Rollout
    opponent: Policy

    def __post_init__(self) -> None:
        pairs: Callable[[int], Worlds] = self.rollout.make_envs
        self.rollout.make_envs = lambda num_envs: Duel(pairs(2 * num_envs), self.opponent)
        self.rollout.group = 1

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        self.opponent.load(weights if brief is None else brief)
        try:
            return self.rollout.run(weights, client, task)
        finally:
            self.opponent.forget()

    def close(self) -> None:
        self.rollout.close()

    def __getattr__(self, name: str) -> Any:
        if name == "rollout":
            raise AttributeError(name)
        return getattr(self.rollout, name)
