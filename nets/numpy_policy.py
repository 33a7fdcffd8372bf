"""Policies without torch: the numpy twin of ActorCritic.

The one idea: to act, an actor needs a few matrix products and a draw (envs/spaces.py). So an actor that plays a built-in
policy never imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from shoal.envs.spaces import Actions, Array, Floats
from shoal.nets.acting import State, Stochastic
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle

Layer = tuple[Floats, Floats]  # weight [inputs, outputs] (a transposed view), bias [outputs]


def _relu(x: Floats, out: Floats) -> Floats:
    return np.maximum(x, np.float32(0), out=out)


ACTIVATIONS: Mapping[str, Callable[..., Any]] = {"tanh": np.tanh, "relu": _relu}


class NumpyPolicy(Stochastic):
    """ActorCritic's actor over views of the weights, which have the same names. activation: "tanh" or "relu"."""

    def __init__(self, action: Actions, activation: str = "tanh") -> None:
        super().__init__(action)
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

    def numbers(self, seen: Array, state: State) -> tuple[Floats, State]:
        return self.parameters(seen), state

    def parameters(self, observation: Array) -> Floats:
        """The numbers [B, P] of observations [B, *obs]: logits, or mean and log_std in one row. Valid until the next call."""
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
