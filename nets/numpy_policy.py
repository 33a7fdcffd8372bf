"""Policies without torch: the numpy twin of ActorCritic, and heads, which turn a policy's numbers into actions.

The one idea: to act, an actor needs a few matrix products and a draw. The noise for all draws of a rollout is made ahead,
so one step costs a handful of numpy calls, and an actor that plays a built-in policy never imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from shoal.envs.spaces import Actions, Box, Discrete
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Layer = tuple[Floats, Floats]  # weight [inputs, outputs] (a transposed view), bias [outputs]


def _relu(x: Floats, out: Floats) -> Floats:
    return np.maximum(x, np.float32(0), out=out)


ACTIVATIONS: Mapping[str, Callable[..., Any]] = {"tanh": np.tanh, "relu": _relu}


class Policy(Protocol):
    """A policy as a rollout uses it: NumpyPolicy here, or TorchPolicy around any torch module."""

    def load(self, weights: Bundle) -> None:
        """Act by these weights from now on."""
        ...

    def forget(self) -> None:
        """Drop the weights: their memory belongs to the caller of `load`."""
        ...

    def parameters(self, observation: Array) -> Floats:
        """The numbers [B, P] of observations [B, *obs]: logits, or mean and log_std in one row. Valid until the next call."""
        ...


class NumpyPolicy:
    """ActorCritic's actor over views of the weights, which have the same names. activation: "tanh" or "relu"."""

    def __init__(self, activation: str = "tanh") -> None:
        if activation not in ACTIVATIONS:
            raise UserError(f"activation={activation!r}: must be one of {', '.join(ACTIVATIONS)}")
        self.activation = ACTIVATIONS[activation]
        self._layers: list[Layer] = []
        self._log_std: Floats | None = None
        self._scratch: list[Floats] = []

    def load(self, weights: Bundle) -> None:
        self._layers = _layers(weights, "trunk") + _layers(weights, "actor")
        self._log_std = None
        if "log_std" in weights:
            self._log_std = weights["log_std"]
        self._scratch = []  # made for the first batch, whose size it takes

    def forget(self) -> None:
        self._layers, self._log_std = [], None

    def parameters(self, observation: Array) -> Floats:
        x = flat(observation)
        if not self._scratch or len(self._scratch[0]) != len(x):
            self._scratch = [np.empty((len(x), len(bias)), np.float32) for _, bias in self._layers]
        for i, ((weight, bias), out) in enumerate(zip(self._layers, self._scratch, strict=True)):
            if i:
                self.activation(x, out=x)
            x = np.matmul(x, weight, out=out)
            x += bias
        if self._log_std is None:
            return x
        return np.concatenate([x, np.broadcast_to(self._log_std, x.shape)], axis=1)


def _layers(weights: Bundle, name: str) -> list[Layer]:
    layers: list[Layer] = []
    while f"{name}.{len(layers)}.weight" in weights:
        i = len(layers)
        layers.append((weights[f"{name}.{i}.weight"].T, weights[f"{name}.{i}.bias"]))
    return layers


def flat(observation: Array) -> Floats:
    """Observations [B, *obs] as rows, float32 [B, size]. Bytes (pictures) are scaled to [0, 1]."""
    rows = observation.reshape(len(observation), -1)
    return np.true_divide(rows, 255, dtype=np.float32) if rows.dtype == np.uint8 else rows


@dataclass(frozen=True, slots=True)
class Categorical:
    """Logits [..., n] of n actions. A draw is the argmax of logits plus Gumbel noise (Gumbel 1954; Maddison et al. 2014)."""

    n: int

    def noise(self, rng: np.random.Generator, rows: int, num_envs: int) -> Floats:
        gaps = rng.standard_exponential((rows, num_envs, self.n), dtype=np.float32)
        np.maximum(gaps, np.finfo(np.float32).tiny, out=gaps)  # the generator may give 0
        return -np.log(gaps)

    def act(self, parameters: Floats, noise: Floats | None) -> Array:
        return np.argmax(parameters if noise is None else parameters + noise, axis=-1)  # type: ignore[no-any-return]

    def log_prob(self, parameters: Floats, action: Array) -> Floats:
        shifted = parameters - parameters.max(axis=-1, keepdims=True)
        chosen = np.take_along_axis(shifted, action[..., None], axis=-1)[..., 0]
        return chosen - np.log(np.exp(shifted).sum(axis=-1))  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Means, then log standard deviations, [..., 2 * size], of `size` independent normal variables."""

    size: int

    def noise(self, rng: np.random.Generator, rows: int, num_envs: int) -> Floats:
        return rng.standard_normal((rows, num_envs, self.size), dtype=np.float32)

    def act(self, parameters: Floats, noise: Floats | None) -> Array:
        mean, log_std = parameters[..., : self.size], parameters[..., self.size :]
        return mean if noise is None else mean + np.exp(log_std) * noise

    def log_prob(self, parameters: Floats, action: Array) -> Floats:
        mean, log_std = parameters[..., : self.size], parameters[..., self.size :]
        z = (action - mean) * np.exp(-log_std)
        return -(0.5 * z * z + log_std + np.float32(0.5 * math.log(2 * math.pi))).sum(axis=-1)  # type: ignore[no-any-return]


Head = Categorical | Gaussian
"""The meaning of a policy's numbers, `parameters` [..., P]: how an action is drawn from them, and how likely it is.

noise: the random numbers for `rows` steps of `num_envs` draws, [rows, num_envs, ...]. act: actions, int64 [B] or float32
[B, A], drawn with the noise, or the likeliest actions if noise is None. log_prob: of each action, [...]."""


def head_of(actions: Actions) -> Head:
    match actions:
        case Discrete(n=n):
            return Categorical(n)
        case Box():
            return Gaussian(actions.size)
