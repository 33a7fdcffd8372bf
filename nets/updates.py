"""Optimizers, elementwise: one seam for a client's steps down its loss and for the server's step along the clients' mean.

The one idea: an update is a pure function of weights, direction, step number and moments, and has no state. So a client can
begin each task anew, and a snapshot can hold a server's moments by name.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, TypeAlias, cast

import torch
from torch import Tensor

from shoal.protocol.errors import UserError, binds, within


class Update(Protocol):
    """An optimizer. moments: name of each tensor of its state -> the number that every element starts from."""

    @property
    def moments(self) -> Mapping[str, float]: ...

    def __call__(self, w: Tensor, delta: Tensor, t: int, *moments: Tensor) -> tuple[Tensor, ...]:
        """Returns the tensor to add to the weights, then the new moments; all of delta's shape and dtype.

        w: the weights, [n]; not to be changed. delta: the direction to go, [n]: minus the gradient at a client (float32),
        the weighted mean of the clients' deltas at the server (float64). t: number of this step, from 1.
        """
        ...


RANGES: Mapping[str, Mapping[str, float]] = {
    "lr": {"above": 0.0},
    "momentum": {"below": 1.0},
    "betas": {"below": 1.0},
    "beta1": {"below": 1.0},
    "beta2": {"below": 1.0},
    "alpha": {"below": 1.0},
    "eps": {"above": 0.0},
    "tau": {"above": 0.0},
    "weight_decay": {},
}
"""The range of each setting of an optimizer, as `within` takes it."""


class Ranged:
    """The settings of an optimizer, a dataclass. Raises UserError if one is out of its range in RANGES."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for name in [each.name for each in fields(cast("Any", self)) if each.name in RANGES]:
            value = getattr(self, name)
            for one in value if isinstance(value, tuple) else (value,):
                within(name, one, **RANGES[name])


@dataclass(frozen=True, slots=True)
class SGD(Ranged):
    """v <- momentum v + delta - weight_decay w; w <- w + lr v (torch.optim.SGD)."""

    lr: float = 1.0
    momentum: float = 0.0
    weight_decay: float = 0.0

    @property
    def moments(self) -> Mapping[str, float]:
        return {"v": 0.0} if self.momentum else {}

    def __call__(self, w: Tensor, delta: Tensor, t: int, *moments: Tensor) -> tuple[Tensor, ...]:
        delta = _decayed(delta, w, self.weight_decay)
        if self.momentum:
            delta = self.momentum * moments[0] + delta
            return self.lr * delta, delta
        return (delta if self.lr == 1 else self.lr * delta,)


@dataclass(frozen=True, slots=True)
class Momentum(SGD):
    """SGD whose momentum is 0.9 by default."""

    momentum: float = 0.9


@dataclass(frozen=True, slots=True)
class Adam(Ranged):
    """Adam (Kingma & Ba 2015, algorithm 1; torch.optim.Adam) with bias correction. Weight decay is part of the gradient."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: ClassVar[bool] = False
    moments: ClassVar[Mapping[str, float]] = {"m": 0.0, "v": 0.0}

    def __call__(self, w: Tensor, delta: Tensor, t: int, *moments: Tensor) -> tuple[Tensor, ...]:
        delta = delta if self.decoupled else _decayed(delta, w, self.weight_decay)
        (m, v), (beta1, beta2) = moments, self.betas
        m = beta1 * m + (1 - beta1) * delta
        v = beta2 * v + (1 - beta2) * delta * delta
        update = self.lr / (1 - beta1**t) * m / (v.sqrt() / math.sqrt(1 - beta2**t) + self.eps)
        return (_decayed(update, w, self.lr * self.weight_decay) if self.decoupled else update), m, v


@dataclass(frozen=True, slots=True)
class AdamW(Adam):
    """Adam whose weight decay stands beside its step: w <- w - lr weight_decay w (Loshchilov & Hutter 2019, algorithm 2)."""

    weight_decay: float = 1e-2
    decoupled: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class RMSprop(Ranged):
    """v <- alpha v + (1 - alpha) delta**2; b <- momentum b + delta / (sqrt(v) + eps); w <- w + lr b (torch.optim.RMSprop)."""

    lr: float = 1e-2
    alpha: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.0
    weight_decay: float = 0.0

    @property
    def moments(self) -> Mapping[str, float]:
        return {"v": 0.0, "b": 0.0} if self.momentum else {"v": 0.0}

    def __call__(self, w: Tensor, delta: Tensor, t: int, *moments: Tensor) -> tuple[Tensor, ...]:
        delta = _decayed(delta, w, self.weight_decay)
        v = self.alpha * moments[0] + (1 - self.alpha) * delta * delta
        step = delta / (v.sqrt() + self.eps)
        if not self.momentum:
            return self.lr * step, v
        b = self.momentum * moments[1] + step
        return self.lr * b, v, b


@dataclass(frozen=True, slots=True)
class Adagrad(Ranged):
    """v <- v + delta**2; w <- w + lr delta / (sqrt(v) + eps) (Duchi et al. 2011; torch.optim.Adagrad)."""

    lr: float = 1e-2
    eps: float = 1e-10
    weight_decay: float = 0.0
    moments: ClassVar[Mapping[str, float]] = {"v": 0.0}

    def __call__(self, w: Tensor, delta: Tensor, t: int, *moments: Tensor) -> tuple[Tensor, ...]:
        delta = _decayed(delta, w, self.weight_decay)
        v = moments[0] + delta * delta
        return self.lr * delta / (v.sqrt() + self.eps), v


UPDATES: Mapping[str, type[Any]] = {
    "sgd": SGD,
    "momentum": Momentum,
    "adam": Adam,
    "adamw": AdamW,
    "rmsprop": RMSprop,
    "adagrad": Adagrad,
}
"""Optimizers by name: constructor(lr=..., weight_decay=..., further settings of its own)."""


Optimizer: TypeAlias = str | type[Update] | Update
"""An optimizer as a user gives it: a name of UPDATES, a class that takes `lr` and further settings, or an Update."""


def update_of(optimizer: Optimizer, **settings: float) -> Update:
    """Returns the Update that `optimizer` names, makes or is.

    settings: lr, momentum, weight_decay for a name or a class; 0 leaves a setting to the class's default. An Update that is
    made already keeps its own lr. Raises UserError for an unknown name, for a setting that the optimizer does not take, and
    for an object that is no Update.
    """
    if isinstance(optimizer, str) and optimizer not in UPDATES:
        raise UserError(f"optimizer={optimizer}: must be one of {', '.join(UPDATES)}, or an Update of your own")
    made = UPDATES[optimizer] if isinstance(optimizer, str) else optimizer
    known = inspect.signature(made).parameters if isinstance(made, type) else {"lr"}
    given = {name: value for name, value in settings.items() if value}
    for name in given.keys() - known:
        where = f"takes {', '.join(known)}" if isinstance(made, type) else "has its own settings: set it there"
        raise UserError(f"{name}={given[name]!r}: optimizer {_called(optimizer)} {where}")
    if isinstance(made, type) and not binds(made, **given):
        names = ", ".join(UPDATES)
        raise UserError(f"optimizer is the class {_called(made)}, which lr alone does not make: give {names}, or an Update")
    return tried(made(**given) if isinstance(made, type) else made, "optimizer")


def tried(update: Any, setting: str) -> Update:
    """Returns `update` after a trial step on two numbers. Raises UserError for an object that is no Update, saying why."""
    moments = getattr(update, "moments", None)
    if not callable(update) or not isinstance(moments, Mapping) or "steps" in moments:
        wanted = "`moments` (name -> first value, none of them steps) and __call__(w, delta, t, *moments)"
        raise UserError(f"{setting}: {_called(update)} is no Update: expected {wanted}")
    found = update(torch.ones(2), torch.ones(2), 1, *(torch.full((2,), float(first)) for first in moments.values()))
    parts = found if isinstance(found, tuple) else ()
    shapes = [list(each.shape) if isinstance(each, Tensor) else type(each).__name__ for each in parts]
    if shapes != [[2]] * (1 + len(moments)):
        wanted, gave = ", ".join(["what to add", *moments]), shapes if parts else type(found).__name__
        raise UserError(f"{setting}: {_called(update)} gave {gave} for weights [2]; expected a tuple ({wanted}), each [2]")
    checked: Update = update
    return checked


def _called(found: object) -> str:
    return found if isinstance(found, str) else getattr(found, "__name__", type(found).__name__)


def _decayed(delta: Tensor, w: Tensor, rate: float) -> Tensor:
    return delta - rate * w if rate else delta
