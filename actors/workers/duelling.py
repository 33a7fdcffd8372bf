"""The worker of self-play: a rollout whose environments are games of two, of which another policy plays one side.

The one idea: seen from the learner's side, the opponent is a part of the environment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from shoal.actors.workers import lives
from shoal.actors.workers.rollout import Rollout
from shoal.envs import states
from shoal.envs.spaces import LIFE, Array
from shoal.envs.states import NoStateError
from shoal.envs.vector import Lasting, Step, Worlds
from shoal.nets.acting import Policy, State
from shoal.protocol.draws import key
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Work


class Duel:
    """B games of two agents, seen by one agent of each: the first agent in games of even number, the second in the others.

    both: the games as 2 * B rows (envs/agents.py). opponent: plays the other rows, and draws its actions as the learner does.
    Its memory goes on from one opponent to the next.
    """

    def __init__(self, both: Worlds, opponent: Policy) -> None:
        self.both, self.opponent = both, opponent
        self.num_envs, self.spaces = both.num_envs // 2, both.spaces
        game = np.arange(self.num_envs)
        self.ours = 2 * game + game % 2
        self.theirs = 2 * game + 1 - game % 2
        self.rng = np.random.Generator(np.random.Philox(key=0))
        self.step_seen: Any = None
        self.first: Any = None

    def reset(self, seed: int, shares: Array | None = None) -> Step:
        self.rng = np.random.Generator(np.random.Philox(key=key(seed, "duel")))
        self.memory: State = self.opponent.begin(self.num_envs)
        return self._of(self.both.reset(seed))

    def step(self, action: Array) -> Step:
        noise = self.opponent.noise(self.rng, 1, self.num_envs)[0]
        answer = self.opponent.act(self.step_seen, self.first, self.memory, noise, {})
        self.memory = answer.state
        whole = np.empty((self.both.num_envs, *action.shape[1:]), action.dtype)
        whole[self.ours], whole[self.theirs] = action, answer.action
        return self._of(self.both.step(whole))

    def watch(self, way: str) -> int:
        return cast(Lasting, self.both).watch(way)

    def state(self) -> Any:
        """The games' state, and the opponent's memory and generator, as plain data. Raises NoStateError."""
        seen = [np.ascontiguousarray(array).tobytes() for array in (self.step_seen, self.first)]
        memory = {name: np.asarray(array).tobytes() for name, array in self.memory.items()}
        return [cast(Lasting, self.both).state(), seen, memory, states.form(self.rng)]

    def restore(self, state: Any) -> None:
        """Go on from a state, in games that were made and reset alike. Raises NoStateError if it does not fit."""
        games, seen, memory, rng = state
        cast(Lasting, self.both).restore(games)
        self.step_seen, self.first = (_like(here, its) for here, its in zip((self.step_seen, self.first), seen, strict=True))
        self.memory = {name: _like(np.asarray(array), memory[name]) for name, array in self.memory.items()}
        self.rng = states.value(rng, self.rng)

    def close(self) -> None:
        self.both.close()

    def _of(self, step: Step) -> Step:
        """The step as our agents see it. What the opponents see is kept for their next answer."""
        self.step_seen, self.first = step.observation[self.theirs].copy(), step.first[self.theirs].copy()
        final = None if step.final is None else step.final[self.ours]
        ours = {name: getattr(step, name)[self.ours] for name in ("observation", "mask", "reward", "terminated", "truncated")}
        return Step(**ours, lived=step.lived[self.ours], first=step.first[self.ours], final=final, replaced=step.replaced)


def _like(here: Any, raw: bytes) -> Any:
    """The array of these bytes, in the form of the array `here`. Raises NoStateError if they are of another one."""
    if len(raw) != here.nbytes:
        raise NoStateError(f"an array of {here.nbytes:,} bytes was told with {len(raw):,}")
    return np.frombuffer(raw, here.dtype).reshape(here.shape).copy()


@dataclass(eq=False, repr=False)
class Duelling:
    """A rollout against the opponent whose weights are in the task's brief, perhaps with the life to go on from beside them;
    without a brief, against the weights themselves."""

    rollout: Rollout
    opponent: Policy

    def __post_init__(self) -> None:
        pairs: Callable[[int], Worlds] = self.rollout.make_envs
        self.rollout.make_envs = lambda num_envs: Duel(pairs(2 * num_envs), self.opponent)
        self.rollout.group = 1

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        told = brief is not None and LIFE in brief.layout.by_name
        life = Bundle(lives.layout(self.rollout.life), brief[LIFE]) if brief is not None and told else None
        self.opponent.load(weights if brief is None else brief.first(weights.layout) if told else brief)
        try:
            return self.rollout.run(weights, client, task, life)
        finally:
            self.opponent.forget()

    def close(self) -> None:
        self.rollout.close()

    def __getattr__(self, name: str) -> Any:
        if name == "rollout":
            raise AttributeError(name)
        return getattr(self.rollout, name)
