"""Asynchronous federated optimisation (Xie, Koyejo and Gupta 2019, "Asynchronous Federated Optimization").

The one idea: every client's model is mixed into the global one as soon as it comes, and one that was made from old weights is
mixed in less.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from shoal.aggregators.fedavg import FedAvgServer, Move
from shoal.protocol.errors import UserError, within
from shoal.protocol.exact import VALUES
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Moved

Staleness: TypeAlias = Callable[[int], float]
"""A function s: lag in versions -> factor of the mixing, 1 for a lag of 0."""


def constant(lag: int) -> float:
    """Return s(lag) = 1."""
    return 1.0


def hinge(a: float = 10.0, b: float = 4.0) -> Staleness:
    """Return s(lag) = 1 if lag <= b, else 1 / (a (lag - b) + 1) (section 5.2). a, b: from 0."""
    within("hinge_a", a)
    within("hinge_b", b)
    return lambda lag: 1.0 if lag <= b else 1.0 / (a * (lag - b) + 1.0)


def polynomial(a: float = 0.5) -> Staleness:
    """Return s(lag) = (1 + lag) ** -a (section 5.2). a: from 0."""
    within("staleness", a)
    return lambda lag: float((1.0 + lag) ** -a)


class FedAsyncServer(FedAvgServer):
    """w <- (1 - m) * w + m * w_client, with m = mixing * s(lag) (algorithm 1, the server's thread "updater").

    A contribution holds the client's weights w_client, not their difference from the weights that it started from
    (actors/workers/whole.py): the equation needs no older version of the global weights. lag: versions between the weights that
    the client started from and the newest; a fresh contribution has lag 0 and s(0) = 1. mixing: the paper's alpha, above 0 and
    at most 1. Each contribution makes a step of its own. Integers move to the nearest whole number; booleans and one-byte
    integers become the client's. Metric: mixing, the m of the step.
    """

    linear: ClassVar[bool] = False  # a model is mixed in by its lag, which only the coordinator knows

    def __init__(
        self,
        weights: Bundle,
        trainable: int | None = None,
        *,
        mixing: float = 0.6,
        staleness: Staleness = constant,
        device: torch.device | str = "cpu",
        deterministic: bool = True,
    ) -> None:
        if not 0 < mixing <= 1:
            raise UserError(f"mixing={mixing!r}: must be a number above 0 to 1")
        super().__init__(weights, trainable, device=device, deterministic=deterministic)
        self.mixing, self.staleness = mixing, staleness
        self.rate, self.examples = mixing, 0.0

    def fold(self, contribution: Contribution) -> None:
        super().fold(contribution)  # may raise: the rate is then that of before
        self.rate, self.examples = self.mixing * self.staleness(contribution.lag), contribution.work.weight

    def weight_of(self, contribution: Contribution) -> float:
        return 1.0  # a sum of one term: no rounding of a product

    def step(self) -> Moved:
        moved = super().step()
        return Moved({**moved.metrics, "examples": self.examples, "mixing": self.rate})

    def _learn(self, move: Move, where: slice) -> Tensor:
        update = self._towards(move, "f4", where)
        square = update.dot(update)
        move.after["f4"][where] = update.add_(move.before["f4"][where])
        return square

    def _average(self, move: Move, dtype: str, where: slice) -> None:
        if dtype in VALUES:
            return super()._average(move, dtype, where)
        before, update = move.before[dtype][where], self._towards(move, dtype, where)
        if before.dtype.is_floating_point:
            move.after[dtype][where] = update.add_(before)
        else:
            move.after[dtype][where] = before + update.round_().to(before.dtype)
        return None

    def _towards(self, move: Move, dtype: str, where: slice) -> Tensor:
        """Return m * (w_client - w) of the entries in `where`, float64."""
        return move.mean(dtype, where).sub_(move.before[dtype][where]).mul_(self.rate)
