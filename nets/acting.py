"""Policies as rollouts play them, and the kinds of networks that methods learn.

The one idea: a policy takes observations and gives actions, and it says itself what it adds to a trajectory and what it
remembers. So a rollout knows no distribution, no exploration and no recurrent state, and one rollout serves every method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.envs.spaces import NOTHING, Actions, Array, Floats, Kept, Spaces, legal
from shoal.protocol.layout import DTYPES, Bundle
from shoal.protocol.work import Words

if TYPE_CHECKING:
    from torch import nn

    from shoal.nets.flat import FlatModule
    from shoal.nets.forward import Forward

Bools: TypeAlias = npt.NDArray[np.bool_]
State: TypeAlias = Mapping[str, Array]
"""A policy's recurrent state of B environments: name -> [B, ...]. Empty for a policy without memory."""


FIRST, ALL = "first environment", "environments"
"""Words beside a task's, where a policy acts for a part of a client's environments: the number of the first of them, and of all
of the client's."""


class Acted(NamedTuple):
    """A policy's answer to B observations. action: as `Spaces.action.layout` says, [B] int64 or [B, A] float32. extras: name ->
    [B, ...], what `finish` needs of this step; valid until the next `act`. state: for the next `act`."""

    action: Array
    extras: Mapping[str, Array]
    state: State


class Policy(Protocol):
    """A policy as a rollout plays it.

    rows: the arrays that the policy adds to a trajectory, one entry for each row and environment: name -> (dtype, shape of one
    entry). {"log_prob": ("f4", ())} for an actor-critic, {} for a Q-network.
    memory: the recurrent state of one environment: name -> (dtype, shape). {} for a policy without memory.
    """

    @property
    def rows(self) -> Kept: ...

    @property
    def memory(self) -> Kept: ...

    def load(self, weights: Bundle) -> None:
        """Act by these weights from now on."""
        ...

    def forget(self) -> None:
        """Drop the weights: their memory belongs to the caller of `load`."""
        ...

    def noise(self, rng: np.random.Generator, rows: int, num_envs: int) -> Array:
        """Every random number of a rollout of `rows` steps of `num_envs` environments: [rows, num_envs, ...]."""
        ...

    def begin(self, num_envs: int) -> State:
        """The state of `num_envs` environments before their first observation."""
        ...

    def act(self, seen: Array, first: Bools, state: State, noise: Array | None, words: Words) -> Acted:
        """Act on observations [B, *obs]; of several parts, or with an action mask beside them, a structured array
        (`Spaces.record`, `apart`).

        first: [B], True where the observation begins an episode: the state of that environment counts as `begin`'s. noise: one
        entry of `noise`; None: greedy actions, as in an evaluation. words: the task's, plain data from the plan.
        """
        ...

    def finish(self, extras: Mapping[str, Array], action: Array) -> Mapping[str, Array]:
        """The arrays of `rows`, [T, B, ...], from the extras [T, B, ...] and actions [T, B, ...] of all steps of a rollout. If
        the rollout ended early, its last entries are zeros."""
        ...


class Parted(Policy, Protocol):
    """A policy whose `act` has two parts: the numbers of its network, which another process may compute for several actors at
    once, and the choice of actions by the noise. `act` is `chosen` of `numbers`, of the state with zeros where `first` is True.

    width: float32 numbers that the network gives for one observation.
    """

    @property
    def width(self) -> int: ...

    def numbers(self, seen: Array, state: State) -> tuple[Floats, State]:
        """The network's numbers, float32 [B, width], of observations [B, *obs], and the next state. Both may be valid until the
        next call only."""
        ...

    def chosen(self, numbers: Floats, seen: Array, state: State, noise: Array | None, words: Words) -> Acted:
        """The actions by these numbers. state: the next one. seen, noise, words: as of `act`."""
        ...


@dataclass(frozen=True, slots=True)
class Form:
    """The settings of a built-in network. hidden: units of each hidden layer. activation: "tanh" or "relu". memory: the
    recurrent core, "lstm" or "gru", of memory_size units; "none": there is no core. pictures: how pictures are read, "auto",
    "mlp", "nature" or "impala" (nets/bodies.py). precision: of the convolutions, "float32" or "bf16"."""

    hidden: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    memory: str = "none"
    memory_size: int = 128
    pictures: str = "auto"
    precision: str = "float32"


CORES: Mapping[str, tuple[str, ...]] = {"lstm": ("h", "c"), "gru": ("h",)}
"""Kind of recurrent core -> the names of its state."""


class Network(Protocol):
    """A kind of network that a method learns (`Acting.network`). Making one imports no torch.

    remembers: True if the method's learner goes through the rows of a trajectory in their order, so that the network may have a
    recurrent state.

    A module here is the network whose weights are published, which is the part that actors need: a learner makes critics and
    target networks itself.

    A kind may have `said(spaces, form) -> str` too: the line that a run prints of the built-in network for these spaces.
    """

    @property
    def remembers(self) -> bool: ...

    def build(self, spaces: Spaces, form: Form, seed: int) -> nn.Module:
        """The built-in network, with the weights of version 0."""
        ...

    def fitting(self, module: nn.Module, spaces: Spaces) -> nn.Module:
        """Returns the module. Raises UserError, one line, for a module that is no network of this kind for these spaces."""
        ...

    def policy(self, spaces: Spaces, form: Form, module: nn.Module | None) -> Policy:
        """The policy that actors play. module: the user's; None: the built-in network, whose policy need not import torch."""
        ...


class InParts:
    """The `act` of a Parted policy."""

    def numbers(self, seen: Array, state: State) -> tuple[Floats, State]:
        """The numbers [B, width] of observations [B, *obs], valid until the next call, and the next state."""
        raise NotImplementedError

    def chosen(self, numbers: Floats, seen: Array, state: State, noise: Array | None, words: Words) -> Acted:
        raise NotImplementedError

    def act(self, seen: Array, first: Bools, state: State, noise: Array | None, words: Words) -> Acted:
        numbers, after = self.numbers(seen, forgotten(state, first) if state else state)
        return self.chosen(numbers, seen, after, noise, words)


class Around:
    """A policy around another one, but for its `act`: it has the other's rows, memory, noise and state."""

    def __init__(self, inner: Policy) -> None:
        self.inner = inner

    @property
    def rows(self) -> Kept:
        return self.inner.rows

    @property
    def memory(self) -> Kept:
        return self.inner.memory

    def load(self, weights: Bundle) -> None:
        self.inner.load(weights)

    def forget(self) -> None:
        self.inner.forget()

    def noise(self, rng: np.random.Generator, rows: int, num_envs: int) -> Array:
        return self.inner.noise(rng, rows, num_envs)

    def begin(self, num_envs: int) -> State:
        return self.inner.begin(num_envs)

    def finish(self, extras: Mapping[str, Array], action: Array) -> Mapping[str, Array]:
        return self.inner.finish(extras, action)


class OfModule:
    """A policy that is a torch module. forward: its pass, with a copy of the weights."""

    forward: Forward

    @property
    def flat(self) -> FlatModule:
        return self.forward.flat

    def load(self, weights: Bundle) -> None:
        self.flat.read(weights)

    def forget(self) -> None: ...  # load has made a copy


class Stochastic(InParts):
    """A policy that draws actions from a distribution, whose numbers (logits, or mean and log_std) a subclass computes.

    The log probability of all rows is computed at once, at the end of a rollout.
    """

    rows: ClassVar[Kept] = {"log_prob": ("f4", ())}

    def __init__(self, action: Actions, memory: Kept = NOTHING) -> None:
        self.action, self.memory = action, memory

    @property
    def width(self) -> int:
        return self.action.parameters

    def noise(self, rng: np.random.Generator, rows: int, num_envs: int) -> Array:
        return self.action.noise(rng, rows, num_envs)

    def begin(self, num_envs: int) -> State:
        return begun(self.memory, num_envs)

    def chosen(self, numbers: Floats, seen: Array, state: State, noise: Array | None, words: Words) -> Acted:
        numbers = legal(self.action, numbers, seen)  # probability 0 for what is forbidden, when drawing and when greedy
        return Acted(self.action.act(numbers, noise), {"numbers": numbers}, state)

    def finish(self, extras: Mapping[str, Array], action: Array) -> Mapping[str, Array]:
        return {"log_prob": self.action.log_prob(extras["numbers"], action)}


def begun(memory: Kept, num_envs: int) -> State:
    """A state of zeros for `num_envs` environments."""
    return {name: np.zeros((num_envs, *shape), DTYPES[dtype]) for name, (dtype, shape) in memory.items()}


def forgotten(state: State, first: Bools) -> State:
    """The state with zeros where `first` is True; the same arrays if it is True nowhere."""
    if not first.any():
        return state
    return {
        name: np.where(first.reshape(-1, *(1,) * (array.ndim - 1)), array.dtype.type(0), array) for name, array in state.items()
    }
