"""Policies of actions between bounds, without torch: SAC's squashed Gaussian, and TD3's deterministic policy with noise.

The one idea: a network's actions lie in [-1, 1], and an environment's between its bounds. `Bounds` goes from one to the other,
so networks, losses and the noise of exploration know one scale. While a task's words say `random`, actions are uniform between
the bounds: the first transitions of a run come from everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from shoal.envs.spaces import NOTHING, Array, Box, Floats, Kept, Spaces
from shoal.nets.acting import Acted, Bools, Form, Policy, State
from shoal.nets.numpy_policy import NumpyPolicy
from shoal.nets.pictures import deep, described
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Words

if TYPE_CHECKING:
    from torch import nn

    from shoal.nets.fitting import Shaped
    from shoal.nets.perceptrons import BoxActor

WIDEST = 1e9  # a wider interval is meant as one without bounds
LOG_STD = (-20.0, 2.0)  # bounds of the log standard deviation, of Haarnoja's implementation
_erf = np.frompyfunc(math.erf, 1, 1)


@dataclass(frozen=True, eq=False)
class Bounds:
    """The middle and the half width of each action's interval, float32 [A]."""

    middle: Floats
    half: Floats

    @classmethod
    def of(cls, spaces: Spaces, method: str) -> Bounds:
        """The bounds of the actions. Raises UserError, one line, for actions that are not Box or not bounded."""
        action = spaces.action
        if not isinstance(action, Box):
            raise UserError(
                f"method={method}: learns Box actions, and the environment's are {action}; method=dqn or method=ppo"
            )
        for i, (low, high) in enumerate(zip(action.low, action.high, strict=True)):
            if not 0 < high - low < WIDEST:
                what = f"action {i} of the environment lies from {low:g} to {high:g}, and finite bounds are needed"
                raise UserError(f"method={method}: {what}; gymnasium.wrappers.TransformAction gives it others, or method=ppo")
        low_A, high_A = np.asarray(action.low), np.asarray(action.high)
        return cls(((low_A + high_A) / 2).astype(np.float32), ((high_A - low_A) / 2).astype(np.float32))

    def outward(self, action: Floats) -> Floats:
        """The environment's actions of a network's, which lie in [-1, 1]: [..., A]."""
        return self.middle + self.half * action


class Numbers(Protocol):
    """A network as an actor runs it: NumpyPolicy, or TorchNumbers around a torch module."""

    def load(self, weights: Bundle) -> None: ...

    def forget(self) -> None: ...

    def parameters(self, observation: Array) -> Floats:
        """The network's numbers [B, P] of observations [B, *obs]. Valid until the next call."""
        ...


class Bounded:
    """A policy of actions between bounds. It adds nothing to a trajectory and remembers nothing.

    Noise is standard normal, [rows, B, A]. With the word `random` in a task, actions are uniform between the bounds.
    """

    rows: Kept = NOTHING
    memory: Kept = NOTHING

    def __init__(self, bounds: Bounds, net: Numbers) -> None:
        self.bounds, self.net, self.size = bounds, net, len(bounds.half)

    def load(self, weights: Bundle) -> None:
        self.net.load(weights)

    def forget(self) -> None:
        self.net.forget()

    def noise(self, rng: np.random.Generator, rows: int, num_envs: int) -> Array:
        return rng.standard_normal((rows, num_envs, self.size), dtype=np.float32)

    def begin(self, num_envs: int) -> State:
        return {}

    def act(self, seen: Array, first: Bools, state: State, noise: Array | None, words: Words) -> Acted:
        if noise is not None and words.get("random"):
            return Acted(self.bounds.outward(uniform(noise)), {}, state)  # the network is not asked
        return self.chosen(self.net.parameters(seen), seen, state, noise, words)

    @property
    def width(self) -> int:
        """Float32 numbers that the network gives for one observation."""
        raise NotImplementedError

    def numbers(self, seen: Array, state: State) -> tuple[Floats, State]:
        return self.net.parameters(seen), state

    def chosen(self, numbers: Floats, seen: Array, state: State, noise: Array | None, words: Words) -> Acted:
        drawn = noise if words.get("random") else None
        action = self.between(numbers, noise, words) if drawn is None else uniform(drawn)
        return Acted(self.bounds.outward(action), {}, state)

    def finish(self, extras: Mapping[str, Array], action: Array) -> Mapping[str, Array]:
        return {}

    def between(self, numbers: Floats, noise: Floats | None, words: Words) -> Floats:
        """Actions [B, A] in [-1, 1] from the network's numbers; greedy ones if noise is None."""
        raise NotImplementedError


class SquashedPolicy(Bounded):
    """SAC's policy: tanh of a normal draw; greedy, tanh of the mean. The network's numbers are mean, then log_std."""

    @property
    def width(self) -> int:
        return 2 * self.size

    def between(self, numbers: Floats, noise: Floats | None, words: Words) -> Floats:
        mean, log_std = numbers[:, : self.size], numbers[:, self.size :]
        action: Floats = np.tanh(mean if noise is None else mean + np.exp(np.clip(log_std, *LOG_STD)) * noise)
        return action


class DeterministicPolicy(Bounded):
    """TD3's policy: the network's action, with noise of the standard deviation that the task's word `noise` says (1: half the
    width of an action's interval), cut off at the bounds. The network's numbers are the action in [-1, 1]."""

    @property
    def width(self) -> int:
        return self.size

    def between(self, numbers: Floats, noise: Floats | None, words: Words) -> Floats:
        if noise is None:
            return numbers
        noisy: Floats = np.clip(numbers + np.float32(words.get("noise", 0.0)) * noise, -1, 1, dtype=np.float32)
        return noisy


class Squashing(NumpyPolicy):
    """The built-in network of TD3 in numpy, whose actions are the tanh of its last layer."""

    def parameters(self, observation: Array) -> Floats:
        found: Floats = np.tanh(super().parameters(observation))
        return found


def uniform(noise: Floats) -> Floats:
    """Numbers uniform in [-1, 1], float32, from standard normal ones: erf(z / sqrt(2)) is 2 * P(z) - 1 (Rosenblatt 1952)."""
    return _erf(noise * math.sqrt(0.5)).astype(np.float32)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class BetweenBounds:
    """A kind of network of actions between bounds, whose weights are the actor's alone. method: the method that learns it.
    gives: what the network gives, for the line that a run prints of it. in_numpy: the built-in perceptron as actors run it."""

    method: ClassVar[str]
    gives: ClassVar[str]
    in_numpy: ClassVar[type[NumpyPolicy]] = NumpyPolicy
    remembers: ClassVar[bool] = False

    def said(self, spaces: Spaces, form: Form) -> str:
        return described(spaces, form, f"{self.gives}; two critics with the same layers", through=True)

    def parts(self) -> tuple[type[BoxActor], Shaped]:
        """The class of the built-in network, and the function that refuses outputs of another form (nets/fitting.py)."""
        raise NotImplementedError

    def build(self, spaces: Spaces, form: Form, seed: int) -> nn.Module:
        from shoal.nets.bodies import precise

        Bounds.of(spaces, self.method)
        return precise(self.parts()[0](spaces, form.hidden, form.activation, seed, form.pictures), form.precision)

    def fitting(self, module: nn.Module, spaces: Spaces) -> nn.Module:
        from shoal.nets.fitting import fitting

        Bounds.of(spaces, self.method)
        return fitting(module, spaces, shaped=self.parts()[1])

    def policy(self, spaces: Spaces, form: Form, module: nn.Module | None) -> Policy:
        bounds = Bounds.of(spaces, self.method)
        if module is None and deep(spaces, form.pictures):
            module = self.build(spaces, form, 0)
        if module is None:
            return self.played(bounds, self.in_numpy(spaces.action, form.activation))
        from shoal.nets.squashed import TorchNumbers

        return self.played(bounds, TorchNumbers(module))

    def played(self, bounds: Bounds, net: Numbers) -> Policy:
        """The policy by a network's numbers."""
        raise NotImplementedError


@dataclass(frozen=True)
class Squashed(BetweenBounds):
    """The kind of network that SAC learns: the squashed Gaussian of nets/squashed.py."""

    method: ClassVar[str] = "sac"
    gives: ClassVar[str] = "the mean and the deviation of each action"

    def parts(self) -> tuple[type[BoxActor], Shaped]:
        from shoal.nets.squashed import SquashedActor, mean_and_deviation

        return SquashedActor, mean_and_deviation

    def played(self, bounds: Bounds, net: Numbers) -> Policy:
        return SquashedPolicy(bounds, net)


@dataclass(frozen=True)
class Deterministic(BetweenBounds):
    """The kind of network that TD3 learns: the deterministic actor of nets/deterministic.py."""

    method: ClassVar[str] = "td3"
    gives: ClassVar[str] = "each action"
    in_numpy: ClassVar[type[NumpyPolicy]] = Squashing

    def parts(self) -> tuple[type[BoxActor], Shaped]:
        from shoal.nets.deterministic import DeterministicActor, actions

        return DeterministicActor, actions

    def played(self, bounds: Bounds, net: Numbers) -> Policy:
        return DeterministicPolicy(bounds, net)
