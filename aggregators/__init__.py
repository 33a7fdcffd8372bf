"""The arithmetic: contributions in, next weights out. One algorithm a file, reading like its paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy.typing as npt

from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Metrics


class Aggregator(Protocol):
    """Owns the weights, the optimizer and the device. Used by one thread at a time.

    linear: its step needs only the weighted sum of the contributions, so that actors may send sums over many clients.
    """

    linear: ClassVar[bool]

    def weights(self) -> Bundle:
        """The current weights, read-only: later steps leave them alone for as long as anybody holds them, or a view of them."""
        ...

    def fold(self, contribution: Contribution) -> None:
        """Take one in; may start its copy to the device. The bundle may be reused by its owner once this returns."""
        ...

    def step(self) -> Metrics:
        """Everything folded since the last step becomes the next weights."""
        ...


class Durable(Protocol):
    """What has to survive a restart beside the weights: optimizer moments, replay, counters."""

    def state(self) -> Mapping[str, npt.NDArray[Any]]: ...

    def load(self, weights: Bundle, state: Mapping[str, npt.NDArray[Any]]) -> None: ...
