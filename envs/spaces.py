"""Observations and actions as plain arrays: the few kinds of gymnasium spaces that are supported.

The one idea: a space is a small frozen description that converts the environment's own form to the arrays of a trajectory
and back, so that policies, rollouts and learners never see a gymnasium object. A space of actions also says how an action is
drawn from a policy's numbers, and how likely it is. The noise for all draws of a rollout is made ahead, so one step costs a
handful of numpy calls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.protocol.errors import UserError
from shoal.protocol.layout import DTYPES, Layout

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Kept: TypeAlias = Mapping[str, tuple[str, tuple[int, ...]]]
"""Arrays that a policy adds to a trajectory: name -> (dtype, shape of one entry)."""
NOTHING: Kept = {}
MOMENTS = "moments/"  # begins the names of a trajectory's statistics, for a normaliser
STATE = "state/"  # begins the names of a policy's recurrent state in a trajectory


@dataclass(frozen=True, slots=True)
class Observations:
    """Observations as arrays of `shape`. dtype: "u1" for pictures (bytes from 0 to 255 in two dimensions or more), which
    policies scale to [0, 1]; "f4" for everything else, unscaled.

    categories: number of values of a Discrete observation, which becomes one-hot (shape is then (categories,)); 0: another
    kind of observation. start: first value of a Discrete observation.
    """

    shape: tuple[int, ...]
    dtype: str = "f4"
    categories: int = 0
    start: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def encoded(self, observation: Any) -> Array:
        """Observations [B, *shape] from the environment's form, batched. May be a view of `observation`."""
        if self.categories:
            index = np.asarray(observation).astype(np.int64) - self.start
            if (odd := (index < 0) | (index >= self.categories)).any():
                space = f"Discrete({self.categories}, start={self.start})"
                raise UserError(
                    f"an environment's observation is {np.asarray(observation)[odd].flat[0]}, outside its space {space}"
                )
            one_hot: Array = np.eye(self.categories, dtype=np.float32)[index]
            return one_hot
        return np.asarray(observation, dtype=DTYPES[self.dtype])


@dataclass(frozen=True, slots=True)
class Discrete:
    """Actions 0 to n - 1; the environment counts its own from `start`.

    A policy's numbers are logits, [..., n]. A draw is the argmax of logits plus Gumbel noise (Gumbel 1954; Maddison et al.
    2014).
    """

    n: int
    start: int = 0

    @property
    def parameters(self) -> int:
        """Size of a policy's output for one observation: n logits."""
        return self.n

    def layout(self) -> tuple[str, tuple[int, ...]]:
        return "i8", ()

    def decoded(self, action: Array) -> Array:
        """Actions in the form that the environment's step takes, from [B]."""
        return action + self.start if self.start else action

    def noise(self, rng: np.random.Generator, rows: int, num_envs: int) -> Floats:
        """The random numbers for `rows` steps of `num_envs` draws: [rows, num_envs, ...]."""
        gaps = rng.standard_exponential((rows, num_envs, self.n), dtype=np.float32)
        np.maximum(gaps, np.finfo(np.float32).tiny, out=gaps)  # the generator may give 0
        return -np.log(gaps)

    def act(self, parameters: Floats, noise: Floats | None) -> Array:
        """Actions, int64 [B], from a policy's numbers: drawn with the noise, or the likeliest actions if noise is None."""
        return np.argmax(parameters if noise is None else parameters + noise, axis=-1)  # type: ignore[no-any-return]

    def log_prob(self, parameters: Floats, action: Array) -> Floats:
        """The log probability of each action, [...], under a policy's numbers."""
        shifted = parameters - parameters.max(axis=-1, keepdims=True)
        chosen = np.take_along_axis(shifted, action[..., None], axis=-1)[..., 0]
        return chosen - np.log(np.exp(shifted).sum(axis=-1))  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Box:
    """Real-valued actions of `shape`, for a policy a vector of `size`. low, high: bounds of each element, may be infinite.

    A policy's numbers are means, then log standard deviations, [..., 2 * size], of independent normal variables.
    """

    shape: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    dtype: str = "f4"

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def parameters(self) -> int:
        """Size of a policy's output for one observation: `size` means, then `size` log_std."""
        return 2 * self.size

    def layout(self) -> tuple[str, tuple[int, ...]]:
        return "f4", (self.size,)

    def decoded(self, action: Array) -> Array:
        """Actions in the form that the environment's step takes, from [B, size]: a copy, clipped to the bounds."""
        clipped = np.clip(action, np.asarray(self.low), np.asarray(self.high))
        return clipped.reshape(len(action), *self.shape).astype(DTYPES[self.dtype])

    def noise(self, rng: np.random.Generator, rows: int, num_envs: int) -> Floats:
        """The random numbers for `rows` steps of `num_envs` draws: [rows, num_envs, size]."""
        return rng.standard_normal((rows, num_envs, self.size), dtype=np.float32)

    def act(self, parameters: Floats, noise: Floats | None) -> Array:
        """Actions, float32 [B, size], from a policy's numbers: drawn with the noise, or the means if noise is None."""
        mean, log_std = parameters[..., : self.size], parameters[..., self.size :]
        return mean if noise is None else mean + np.exp(log_std) * noise

    def log_prob(self, parameters: Floats, action: Array) -> Floats:
        """The log density of each action, [...], under a policy's numbers."""
        mean, log_std = parameters[..., : self.size], parameters[..., self.size :]
        z = (action - mean) * np.exp(-log_std)
        return -(0.5 * z * z + log_std + np.float32(0.5 * math.log(2 * math.pi))).sum(axis=-1)  # type: ignore[no-any-return]


Actions = Discrete | Box


@dataclass(frozen=True, slots=True)
class Spaces:
    """The observations and the actions of an agent.

    finals: True if the environment begins a new episode in the very step that truncates one, so that the old episode's last
    observation is not in the trajectory's next row, but beside its last row.
    """

    observation: Observations
    action: Actions
    finals: bool = False

    def trajectory(
        self, rollout_length: int, num_envs: int, rows: Kept = NOTHING, memory: Kept = NOTHING, moments: Kept = NOTHING
    ) -> Layout:
        """The layout of a trajectory of T = rollout_length rows by B = num_envs environments, time first.

        observation [T+1, B, *shape], the last row to bootstrap from; action [T, B] int64 or [T, B, A] float32 (before it
        is clipped to the bounds); an array [T, B, ...] for each of `rows`, the policy's own, such as log_prob, that of the
        action under the policy that drew it; reward [T, B];
        terminated, truncated [T, B]; mask [T, B], False on a row that is not to be learned from: its observation is the
        last one of a truncated episode, from which the row before bootstraps, or, if the row only resets, the last one of
        any finished episode. If `finals`: final [T, B, *shape], the last observation of an episode that its row truncates.
        For a policy with memory: first [T+1, B], True where an observation begins an episode; and state/NAME [B, ...] for each
        of `memory`, the state before the first row, which counts as the policy's first one where first[0] is True.
        moments/NAME [...] for each of `moments`: statistics of the whole trajectory (nets/moments.py).
        """
        T, B = rollout_length, num_envs
        dtype, shape = self.action.layout()
        final = {"final": (self.observation.dtype, (T, B, *self.observation.shape))} if self.finals else {}
        added = {name: (kind, (T, B, *its)) for name, (kind, its) in rows.items()}
        state = {f"{STATE}{name}": (kind, (B, *its)) for name, (kind, its) in memory.items()}
        return Layout.of(
            {
                "observation": (self.observation.dtype, (T + 1, B, *self.observation.shape)),
                "action": (dtype, (T, B, *shape)),
                **added,
                "reward": ("f4", (T, B)),
                "terminated": ("b1", (T, B)),
                "truncated": ("b1", (T, B)),
                "mask": ("b1", (T, B)),
                **final,
                **({"first": ("b1", (T + 1, B))} if memory else {}),
                **state,
                **{f"{MOMENTS}{name}": its for name, its in moments.items()},
            }
        )


def spaces_of(observation_space: Any, action_space: Any, finals: bool = False) -> Spaces:
    """The `Spaces` of a single environment's gymnasium spaces; finals as in Spaces. Raises UserError for a space that is not
    supported."""
    return Spaces(_observations(observation_space), _actions(action_space), finals)


def _observations(space: Any) -> Observations:
    from gymnasium import spaces

    match space:
        case spaces.Box():
            picture = space.dtype == np.uint8 and len(space.shape) > 1 and (space.low == 0).all() and (space.high == 255).all()
            return Observations(tuple(space.shape), "u1" if picture else "f4")
        case spaces.Discrete():
            return Observations((int(space.n),), categories=int(space.n), start=int(space.start))
        case spaces.MultiBinary():
            return Observations(tuple(space.shape))
    raise UserError(
        f"observation space {_short(space)} is not supported (Box, Discrete, MultiBinary are); "
        "wrap the environment in gymnasium.wrappers.FlattenObservation"
    )


def _actions(space: Any) -> Actions:
    from gymnasium import spaces

    match space:
        case spaces.Discrete():
            return Discrete(int(space.n), int(space.start))
        case spaces.Box() if space.dtype in (np.float32, np.float64):
            return Box(
                tuple(space.shape), _numbers(space.low), _numbers(space.high), "f8" if space.dtype == np.float64 else "f4"
            )
    raise UserError(
        f"action space {_short(space)} is not supported (Discrete and Box of float32 or float64 are); "
        "wrap the environment in a gymnasium.ActionWrapper that offers one of those"
    )


def _numbers(bounds: Array) -> tuple[float, ...]:
    return tuple(float(x) for x in bounds.ravel())


def _short(space: Any) -> str:
    text = " ".join(str(space).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
