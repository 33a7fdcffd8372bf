"""The arithmetic: contributions in, next weights out. One algorithm a file, reading like its paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Moved

PARTS = ("weights", "fold", "step", "state", "load")


class Aggregator(Protocol):
    """Owns the weights, the optimizer and the device. One thread at a time uses it. All five methods are needed.

    An aggregator may have two more methods. `change() -> Bundle | None` tells what the last step changed (around/told.py).
    `brief(task) -> Bundle | None` gives arrays that go down with one task alone.
    """

    @property
    def linear(self) -> bool:
        """True if a step needs only the weighted sum of the contributions. Then actors may send sums over many clients, and
        `fold` meets contributions with `summed` set, whose bundle is a sum in the form of protocol/exact.py."""
        ...

    def weights(self) -> Bundle:
        """The current weights, read-only: later steps leave them alone for as long as anybody holds them, or a view of them."""
        ...

    def fold(self, contribution: Contribution) -> None:
        """Take one contribution in. Its bundle may be written anew by its owner once this returns.

        Raises ValueError (or ProtocolError, which is one), with nothing taken in, for a contribution that does not fit.
        """
        ...

    def step(self) -> Moved:
        """Make everything folded since the last step the next weights."""
        ...

    def state(self) -> Mapping[str, npt.NDArray[Any]]:
        """Arrays that must survive a restart beside the weights: moments, counters. Empty where there are none."""
        ...

    def load(self, weights: Bundle, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from weights and state as `weights` and `state` gave them. What was folded since is forgotten."""
        ...


def lacking(aggregator: Any) -> list[str]:
    """The parts of an Aggregator that this object lacks, by name."""
    missing = [name for name in PARTS if not callable(getattr(aggregator, name, None))]
    return missing if isinstance(getattr(aggregator, "linear", None), bool) else [*missing, "linear"]


def amiss(aggregator: Aggregator) -> str:
    """Returns what is wrong with the values that an aggregator gives at its start, in one line; "" if nothing is."""
    weights, state = aggregator.weights(), aggregator.state()
    if not isinstance(weights, Bundle):
        return f"weights() gave {type(weights).__name__}; expected a Bundle: Bundle.pack({{name: array}})"
    if not isinstance(state, Mapping):
        return f"state() gave {type(state).__name__}; expected a dict of numpy arrays by name, {{}} if there is nothing to keep"
    wrong = [name for name, value in state.items() if not isinstance(value, np.ndarray | np.generic) or value.dtype.hasobject]
    return f"state()[{wrong[0]!r}] is {type(state[wrong[0]]).__name__}; expected a numpy array" if wrong else ""
