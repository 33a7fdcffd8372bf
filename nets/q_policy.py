"""Q-networks as rollouts play them: epsilon-greedy, and the kind of network that DQN's methods learn.

The one idea: epsilon is not the policy's but the task's, because it changes by version or by environment: the plan's words say
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from shoal.envs.spaces import NOTHING, Array, Box, Discrete, Floats, Kept, Spaces, apart
from shoal.nets.acting import ALL, FIRST, Acted, Form, InParts, OfModule, Policy, State, begun
from shoal.nets.numpy_policy import activation_of, flat
from shoal.nets.pictures import deep, described
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Words

if TYPE_CHECKING:
    from torch import nn

BELIEVED: Kept = {"q": ("f4", ()), "best": ("f4", ())}  # values of the action taken and of the best action, of each row

GIVES = {False: "the value of each action", True: "the value of the state and the advantage of each action"}
"""Whether a Q-network is duelling -> what its heads give, for the line that a run prints of it."""


def epsilons(words: Words, num_envs: int) -> npt.NDArray[np.float64]:
    """The probability [B] of a random action in each environment, from a task's words: `epsilon`, 0 if it is not said.

    With the word `ladder` environment i has epsilon^(1 + ladder * i / (B - 1)) (Horgan et al. 2018, section 4). If these are a
    part of a client's environments, the words FIRST and ALL say the number of the first of them, and B.
    """
    rungs = (np.arange(num_envs) + words.get(FIRST, 0)) / max(1, words.get(ALL, num_envs) - 1)
    powers: npt.NDArray[np.float64] = float(words.get("epsilon", 0.0)) ** (1.0 + float(words.get("ladder", 0.0)) * rungs)
    return powers


class EpsilonGreedy(InParts):
    """A policy that takes the best action, or with probability epsilon any action. A subclass computes the values.

    believes: True adds BELIEVED to a trajectory.
    """

    def __init__(self, action: Discrete, believes: bool = False, memory: Kept = NOTHING) -> None:
        self.action, self.believes, self.memory = action, believes, memory
        self.rows: Kept = BELIEVED if believes else NOTHING

    @property
    def width(self) -> int:
        return self.action.n

    def values(self, seen: Array) -> Floats:
        """The values [B, n] of observations [B, *obs], valid until the next call."""
        raise NotImplementedError

    def numbers(self, seen: Array, state: State) -> tuple[Floats, State]:
        """The values [B, n] of observations [B, *obs], and the state after them."""
        return self.values(seen), state

    def noise(self, rng: np.random.Generator, rows: int, num_envs: int) -> Array:
        """Two numbers from 0 to below 1 for each draw, [rows, num_envs, 2]: whether the action is random, and which."""
        return rng.random((rows, 2, num_envs), dtype=np.float32).transpose(0, 2, 1)

    def begin(self, num_envs: int) -> State:
        return begun(self.memory, num_envs)

    def chosen(self, numbers: Floats, seen: Array, state: State, noise: Array | None, words: Words) -> Acted:
        allowed = apart(seen)[1] if seen.dtype.names is not None else None
        if allowed is not None:
            numbers = self.action.legal(numbers, allowed)
        action = numbers.argmax(axis=-1)
        if noise is not None and (epsilon := epsilons(words, len(seen))).any():
            action = np.where(noise[:, 0] < epsilon, self._any_one(noise[:, 1], allowed), action)
        return Acted(action, {"values": numbers} if self.believes else {}, state)

    def _any_one(self, noise: Array, allowed: Array | None) -> Array:
        """Actions [B], each one of those that are allowed with the same probability, from numbers in [0, 1)."""
        if allowed is None:
            return np.minimum((noise * self.action.n).astype(np.int64), self.action.n - 1)
        count = allowed.sum(axis=-1)
        rank = np.minimum((noise * count).astype(np.int64), count - 1)
        return np.asarray((allowed.cumsum(axis=-1) > rank[:, None]).argmax(axis=-1))

    def finish(self, extras: Mapping[str, Array], action: Array) -> Mapping[str, Array]:
        if not self.believes:
            return {}
        values = extras["values"]
        return {"q": np.take_along_axis(values, action[..., None], axis=-1)[..., 0], "best": values.max(axis=-1)}


class NumpyQ(EpsilonGreedy):
    """QNetwork's twin over views of the weights, which have the same names. activation: "tanh" or "relu"."""

    def __init__(self, action: Discrete, activation: str = "relu", believes: bool = False) -> None:
        super().__init__(action, believes)
        self.activation = activation_of(activation)
        self._arrays: dict[str, Floats] = {}

    def load(self, weights: Bundle) -> None:
        self._arrays = dict(weights.items())

    def forget(self) -> None:
        self._arrays = {}

    def values(self, seen: Array) -> Floats:
        x, i = flat(seen), 0
        while f"trunk.{i}.weight" in self._arrays:
            x = self._linear(x, f"trunk.{i}")
            self.activation(x, out=x)
            i += 1
        if "q.weight" in self._arrays:
            return self._linear(x, "q")
        advantage = self._linear(x, "advantage")
        advantage += self._linear(x, "value") - advantage.mean(axis=-1, keepdims=True)
        return advantage

    def _linear(self, x: Floats, name: str) -> Floats:
        out: Floats = np.matmul(x, self._arrays[f"{name}.weight"].T)
        out += self._arrays[f"{name}.bias"]
        return out


class TorchQ(OfModule, EpsilonGreedy):
    """A module with forward(observation) -> values [B, n] as a rollout's policy, in the module's own mode."""

    def __init__(self, module: nn.Module, action: Discrete, believes: bool = False) -> None:
        from shoal.nets.flat import FlatModule
        from shoal.nets.forward import Forward

        super().__init__(action, believes)
        self.forward = Forward(FlatModule(module), lambda values: (values, {}))

    def values(self, seen: Array) -> Floats:
        return self.forward(seen, {})[0]


class RecurrentTorchQ(OfModule, EpsilonGreedy):
    """A module with memory and forward(observation, state) -> (values [B, n], state) as a rollout's policy."""

    def __init__(self, module: nn.Module, action: Discrete) -> None:
        from shoal.nets.fitting import memory_of
        from shoal.nets.flat import FlatModule
        from shoal.nets.forward import Forward

        super().__init__(action, memory={name: ("f4", shape) for name, shape in memory_of(module).items()})
        self.forward = Forward(FlatModule(module), lambda outputs: (outputs[0], outputs[1]))

    def numbers(self, seen: Array, state: State) -> tuple[Floats, State]:
        return self.forward(seen, state)


@dataclass(frozen=True)
class QNetworks:
    """Networks with forward(observation) -> values of the actions: nets/q.py. dueling: of the built-in network. believes:
    actors add what they believed of their actions to a trajectory."""

    dueling: bool = False
    believes: bool = False
    remembers: ClassVar[bool] = False

    def said(self, spaces: Spaces, form: Form) -> str:
        return described(spaces, form, GIVES[self.dueling])

    def build(self, spaces: Spaces, form: Form, seed: int) -> nn.Module:
        from shoal.nets.bodies import precise
        from shoal.nets.q import QNetwork

        return precise(QNetwork(spaces, form.hidden, form.activation, self.dueling, seed, form.pictures), form.precision)

    def fitting(self, module: nn.Module, spaces: Spaces) -> nn.Module:
        from shoal.nets.q import fitting

        return fitting(module, spaces)

    def policy(self, spaces: Spaces, form: Form, module: nn.Module | None) -> Policy:
        action = discrete(spaces)
        if module is None and not deep(spaces, form.pictures):
            return NumpyQ(action, form.activation, self.believes)
        return TorchQ(module or self.build(spaces, form, 0), action, self.believes)


@dataclass(frozen=True)
class RecurrentQNetworks:
    """Networks with memory and forward(observation, state) -> (values of the actions, state): nets/q.py. dueling: of the
    built-in network."""

    dueling: bool = False
    remembers: ClassVar[bool] = True

    def said(self, spaces: Spaces, form: Form) -> str:
        return described(spaces, form, GIVES[self.dueling])

    def build(self, spaces: Spaces, form: Form, seed: int) -> nn.Module:
        from shoal.nets.bodies import precise
        from shoal.nets.q import RecurrentQNetwork

        if form.memory == "none":
            raise UserError("memory=none: r2d2 learns networks with memory; memory=lstm or gru, or method=apex without memory")
        shape = (form.hidden, form.activation, self.dueling, form.memory, form.memory_size)
        return precise(RecurrentQNetwork(spaces, *shape, seed, form.pictures), form.precision)

    def fitting(self, module: nn.Module, spaces: Spaces) -> nn.Module:
        from shoal.nets.q import fitting

        return fitting(module, spaces, remembers=True)

    def policy(self, spaces: Spaces, form: Form, module: nn.Module | None) -> Policy:
        return RecurrentTorchQ(module or self.build(spaces, form, 0), discrete(spaces))


def discrete(spaces: Spaces) -> Discrete:
    """The spaces' actions. Raises UserError unless they are Discrete."""
    if not isinstance(spaces.action, Discrete):
        kind = type(spaces.action).__name__
        fix = "method=sac or ppo" if isinstance(spaces.action, Box) else "method=ppo or impala"
        raise UserError(f"actions are {kind}: a Q-network gives a value for each of finitely many actions; use {fix}")
    return spaces.action
