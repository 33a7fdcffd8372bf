"""Kinds of actions: how an action is drawn from a policy's numbers, how likely it is, and what the environment is given.

The one idea: each kind is a small frozen description with the same functions, over rows of float32 numbers, so that a rollout
draws without torch. The noise for all draws of a rollout is made ahead, so one step costs a handful of numpy calls. The parts
of an action are independent given the observation: log probabilities of parts add up, and so do entropies
(nets/distributions.py has the same kinds in torch).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.protocol.layout import DTYPES

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


class Logits:
    """The part that kinds of actions share which are one choice or several, with a logit for each choice."""

    __slots__ = ()

    @property
    def size(self) -> int:
        """Width of a policy's output: a logit for each choice."""
        raise NotImplementedError

    @property
    def parameters(self) -> int:
        """Size of a policy's output for one observation: a logit for each choice."""
        return self.size

    @property
    def choices(self) -> int:
        """Number of choices that an action mask may forbid: all."""
        return self.size

    def noise(self, rng: np.random.Generator, rows: int, num_envs: int) -> Floats:
        """The random numbers for `rows` steps of `num_envs` draws: [rows, num_envs, size]."""
        return _gumbel(rng, (rows, num_envs, self.size))

    def legal(self, parameters: Floats, allowed: Bools) -> Floats:
        """The numbers with -inf for each choice that is not allowed. allowed: [..., size]."""
        return np.where(allowed, parameters, np.float32(-np.inf))


class Unmasked:
    """The part that kinds of actions share of which an action mask can forbid nothing."""

    __slots__ = ()

    @property
    def choices(self) -> int:
        """0: an action mask can forbid nothing here."""
        return 0

    def legal(self, parameters: Floats, allowed: Bools) -> Floats:
        raise NotImplementedError(f"{type(self).__name__} actions have no action mask")

    def possible(self, allowed: Bools) -> Bools:
        raise NotImplementedError(f"{type(self).__name__} actions have no action mask")


@dataclass(frozen=True, slots=True)
class Discrete(Logits):
    """Actions 0 to n - 1; the environment counts its own from `start`.

    A policy's numbers are logits, [..., n]. A draw is the argmax of logits plus Gumbel noise (Gumbel 1954; Maddison et al.
    2014).
    """

    n: int
    start: int = 0

    @property
    def size(self) -> int:
        """Width of a policy's output: n logits."""
        return self.n

    def layout(self) -> tuple[str, tuple[int, ...]]:
        return "i8", ()

    def decoded(self, action: Array) -> Array:
        """Actions in the form that the environment's step takes, from [B]."""
        return action + self.start if self.start else action

    def act(self, parameters: Floats, noise: Floats | None) -> Array:
        """Actions, int64 [B], from a policy's numbers: drawn with the noise, or the likeliest actions if noise is None."""
        return np.argmax(parameters if noise is None else parameters + noise, axis=-1)  # type: ignore[no-any-return]

    def log_prob(self, parameters: Floats, action: Array) -> Floats:
        """The log probability of each action, [...], under a policy's numbers."""
        return _log_prob(parameters, action)

    def possible(self, allowed: Bools) -> Bools:
        """True where a mask [..., n] leaves an action: [...]."""
        return np.asarray(allowed.any(axis=-1))


@dataclass(frozen=True, slots=True)
class MultiDiscrete(Logits):
    """Several whole numbers at once. The i-th is one of nvec[i] values; the environment counts its own from start[i], and takes
    arrays of `shape` and `dtype`. MultiDiscrete spaces and Box spaces of whole numbers are of this kind.

    A policy's numbers are the logits of each part, one part after the other, [..., sum(nvec)]. Parts are independent: log
    probabilities add up.
    """

    nvec: tuple[int, ...]
    start: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str = "int64"

    @property
    def size(self) -> int:
        """Width of a policy's output: sum(nvec) logits."""
        return sum(self.nvec)

    def layout(self) -> tuple[str, tuple[int, ...]]:
        return "i8", (len(self.nvec),)

    def parts(self, numbers: Array) -> Iterator[Array]:
        """The numbers [..., nvec[i]] of each part, as views."""
        for first, last in pairwise(accumulate(self.nvec, initial=0)):
            yield numbers[..., first:last]

    def decoded(self, action: Array) -> Array:
        """Actions in the form that the environment's step takes, from [B, K]."""
        counted = action + np.asarray(self.start)
        return np.asarray(counted.reshape(len(action), *self.shape), dtype=self.dtype)

    def act(self, parameters: Floats, noise: Floats | None) -> Array:
        """Actions, int64 [B, K], from a policy's numbers: drawn with the noise, or the likeliest if noise is None."""
        shifted = parameters if noise is None else parameters + noise
        return np.stack([np.asarray(part.argmax(axis=-1)) for part in self.parts(shifted)], axis=-1)

    def log_prob(self, parameters: Floats, action: Array) -> Floats:
        """The log probability of each action, [...], under a policy's numbers: the sum over the parts."""
        each = [_log_prob(part, action[..., i]) for i, part in enumerate(self.parts(parameters))]
        return np.sum(each, axis=0, dtype=np.float32)  # type: ignore[no-any-return]

    def possible(self, allowed: Bools) -> Bools:
        """True where a mask [..., sum(nvec)] leaves a choice in each part: [...]."""
        return np.all([part.any(axis=-1) for part in self.parts(allowed)], axis=0)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class MultiBinary(Unmasked):
    """Bits, each 0 or 1; the environment takes int8 arrays of `shape`.

    A policy's numbers are one logit for each bit, [..., size]: the bit is 1 with probability sigmoid(logit). Bits are
    independent: log probabilities add up.
    """

    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def parameters(self) -> int:
        """Size of a policy's output for one observation: one logit for each bit."""
        return self.size

    def layout(self) -> tuple[str, tuple[int, ...]]:
        return "b1", (self.size,)

    def decoded(self, action: Array) -> Array:
        """Actions in the form that the environment's step takes, from [B, size]."""
        return action.reshape(len(action), *self.shape).astype(np.int8)

    def noise(self, rng: np.random.Generator, rows: int, num_envs: int) -> Floats:
        """The random numbers for `rows` steps of `num_envs` draws: [rows, num_envs, size], logistic."""
        both = _gumbel(rng, (2, rows, num_envs, self.size))
        return both[0] - both[1]  # type: ignore[no-any-return]

    def act(self, parameters: Floats, noise: Floats | None) -> Array:
        """Actions, bool [B, size], from a policy's numbers: drawn with the noise, or the likelier bits if noise is None."""
        return (parameters if noise is None else parameters + noise) > 0

    def log_prob(self, parameters: Floats, action: Array) -> Floats:
        """The log probability of each action, [...], under a policy's numbers: the sum over the bits."""
        wrong = np.where(action, -parameters, parameters)  # log(1 + exp(wrong)) is -log of the bit's probability
        return -np.logaddexp(np.float32(0), wrong).sum(axis=-1)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Box(Unmasked):
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


Actions = Discrete | MultiDiscrete | MultiBinary | Box


def _gumbel(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    gaps = rng.standard_exponential(shape, dtype=np.float32)
    np.maximum(gaps, np.finfo(np.float32).tiny, out=gaps)  # the generator may give 0
    return -np.log(gaps)


def _log_prob(logits: Floats, action: Array) -> Floats:
    """The log probability of each action, [...], of one choice with these logits [..., n]. -inf is a choice that cannot be."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(shifted, action[..., None], axis=-1)[..., 0]
    return chosen - np.log(np.exp(shifted).sum(axis=-1))  # type: ignore[no-any-return]
