"""Policies without torch: the numpy twin of ActorCritic.

The one idea: to act, an actor needs a few matrix products and a draw (envs/spaces.py). So an actor that plays a built-in
policy never imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from shoal.envs.spaces import NOTHING, Actions, Array, Floats, Kept, apart
from shoal.nets.acting import CORES, State, Stochastic
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle

Layer = tuple[Floats, Floats]  # weight [inputs, outputs] (a transposed view), bias [outputs]


def _relu(x: Floats, out: Floats) -> Floats:
    return np.maximum(x, np.float32(0), out=out)


ACTIVATIONS: Mapping[str, Callable[..., Any]] = {"tanh": np.tanh, "relu": _relu}


def activation_of(name: str) -> Callable[..., Any]:
    """The function of an activation's name. Raises UserError for an unknown name."""
    if name not in ACTIVATIONS:
        raise UserError(f"activation={name!r}: must be one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def check_layers(hidden: Sequence[int], activation: str) -> None:
    """Raises UserError for a layer without units, or an unknown activation."""
    activation_of(activation)
    if any(width < 1 for width in hidden):
        raise UserError(f"hidden={tuple(hidden)}: every layer must have at least 1 unit")


class NumpyPolicy(Stochastic):
    """ActorCritic's actor over views of the weights, which have the same names. activation: "tanh" or "relu"."""

    def __init__(self, action: Actions, activation: str = "tanh", memory: Kept = NOTHING) -> None:
        super().__init__(action, memory)
        self.activation = activation_of(activation)
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
        return self._whole(x)

    def _whole(self, x: Floats) -> Floats:
        """The numbers of a policy from the outputs of its last layer: with log_std, for Box actions."""
        return x if self._log_std is None else np.concatenate([x, np.broadcast_to(self._log_std, x.shape)], axis=1)


class RecurrentNumpyPolicy(NumpyPolicy):
    """RecurrentActorCritic's actor over views of the weights (nets/recurrent.py). core: "lstm" or "gru", of `size` units."""

    def __init__(self, action: Actions, activation: str = "tanh", core: str = "lstm", size: int = 128) -> None:
        super().__init__(action, activation, dict.fromkeys(CORES[core], ("f4", (size,))))
        self.core, self.size = core, size
        self._cell: tuple[Layer, Layer] | None = None

    def load(self, weights: Bundle) -> None:
        super().load(weights)
        inner, outer = ((weights[f"core.weight_{at}"].T, weights[f"core.bias_{at}"]) for at in ("ih", "hh"))
        self._cell = inner, outer

    def forget(self) -> None:
        super().forget()
        self._cell = None

    def numbers(self, seen: Array, state: State) -> tuple[Floats, State]:
        x = flat(seen)
        *trunk, (weight, bias) = self._layers
        for w, b in trunk:
            x = x @ w + b
            self.activation(x, out=x)
        after = self._stepped(x, state)
        return self._whole(after["h"] @ weight + bias), after

    def _stepped(self, x: Floats, state: State) -> State:
        """The state after one more row. The gates are in torch's order: an LSTM's input, forget, cell, output; a GRU's reset,
        update, new."""
        assert self._cell is not None
        (w_in, b_in), (w_out, b_out) = self._cell
        inner, outer, n = x @ w_in + b_in, state["h"] @ w_out + b_out, self.size
        if self.core == "lstm":
            gates = inner + outer
            gate = _sigmoid(gates)
            c = gate[:, n : 2 * n] * state["c"] + gate[:, :n] * np.tanh(gates[:, 2 * n : 3 * n])
            return {"h": gate[:, 3 * n :] * np.tanh(c), "c": c}
        gate = _sigmoid(inner[:, : 2 * n] + outer[:, : 2 * n])
        new = np.tanh(inner[:, 2 * n :] + gate[:, :n] * outer[:, 2 * n :])
        return {"h": new + gate[:, n:] * (state["h"] - new)}


def _sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    half = np.float32(0.5)
    return half * np.tanh(half * x) + half  # type: ignore[no-any-return]


def _layers(weights: Bundle, name: str) -> list[Layer]:
    layers: list[Layer] = []
    while f"{name}.{len(layers)}.weight" in weights:
        i = len(layers)
        layers.append((weights[f"{name}.{i}.weight"].T, weights[f"{name}.{i}.bias"]))
    return layers


def flat(observation: Array) -> Floats:
    """Observations [B, *obs] as rows, float32 [B, size]: bytes (pictures) are scaled to [0, 1], and the parts of a Dict lie one
    after the other. A mask beside the observation is left out."""
    if observation.dtype.names is not None:
        inner = apart(observation)[0]
        return np.concatenate(list(map(flat, inner.values())), axis=1) if isinstance(inner, dict) else flat(inner)
    rows = observation.reshape(len(observation), -1)
    return np.true_divide(rows, 255, dtype=np.float32) if rows.dtype == np.uint8 else rows
