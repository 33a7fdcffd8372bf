"""Base optimizers of Mime, each as a step with fixed statistics and a rule that tracks the statistics.

The one idea: U uses the statistics and never changes them, V changes them and moves no weights (Karimireddy et al. 2021,
table 2). So a client's step and the server's are two pure functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor


class Statistics(Protocol):
    """A base optimizer. names: of its statistics' arrays, which begin with zeros."""

    names: ClassVar[tuple[str, ...]]

    def move(self, gradient: Tensor, *statistics: Tensor) -> Tensor:
        """U: the direction of a step, to be taken times -lr, of the gradient's shape and dtype."""
        ...

    def track(self, gradient: Tensor, t: int, *statistics: Tensor) -> tuple[Tensor, ...]:
        """V: the next statistics. t: number of the server's step, from 1."""
        ...


@dataclass(frozen=True, slots=True)
class MimeMomentum:
    """U = (1 - beta1) g + beta1 m;  V: m <- (1 - beta1) g + beta1 m."""

    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-3
    names: ClassVar[tuple[str, ...]] = ("m",)

    def move(self, gradient: Tensor, *statistics: Tensor) -> Tensor:
        return (1 - self.beta1) * gradient + self.beta1 * statistics[0]

    def track(self, gradient: Tensor, t: int, *statistics: Tensor) -> tuple[Tensor, ...]:
        return (self.move(gradient, *statistics),)


@dataclass(frozen=True, slots=True)
class MimeRMSprop(MimeMomentum):
    """U = g / (sqrt(v) + eps);  V: v <- (1 - beta2) g**2 + beta2 v."""

    names: ClassVar[tuple[str, ...]] = ("v",)

    def move(self, gradient: Tensor, *statistics: Tensor) -> Tensor:
        return gradient / (statistics[0].sqrt() + self.eps)

    def track(self, gradient: Tensor, t: int, *statistics: Tensor) -> tuple[Tensor, ...]:
        return ((1 - self.beta2) * gradient * gradient + self.beta2 * statistics[0],)


@dataclass(frozen=True, slots=True)
class MimeAdam(MimeMomentum):
    """U = ((1 - beta1) g + beta1 m) / (sqrt(v) + eps), with m and v corrected for their beginning in zeros: the statistics hold
    m / (1 - beta1^t) and v / (1 - beta2^t) of Adam's m and v, t the number of the server's steps."""

    names: ClassVar[tuple[str, ...]] = ("m", "v")

    def move(self, gradient: Tensor, *statistics: Tensor) -> Tensor:
        m, v = statistics
        return ((1 - self.beta1) * gradient + self.beta1 * m) / (v.sqrt() + self.eps)

    def track(self, gradient: Tensor, t: int, *statistics: Tensor) -> tuple[Tensor, ...]:
        m, v = statistics
        return (
            _corrected(m, gradient, self.beta1, t),
            _corrected(v, gradient * gradient, self.beta2, t),
        )


def _corrected(mean: Tensor, new: Tensor, beta: float, t: int) -> Tensor:
    """A corrected moving average after its t-th value: the correction of the one before is taken back first."""
    return (beta * mean * (1 - beta ** (t - 1)) + (1 - beta) * new) / (1 - beta**t)


BASES: Mapping[str, type[MimeMomentum]] = {"momentum": MimeMomentum, "rmsprop": MimeRMSprop, "adam": MimeAdam}
