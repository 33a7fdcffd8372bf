"""Aggregators: the arithmetic that makes contributions into the next weights. One algorithm a file, reading like its paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.protocol.errors import unfit
from shoal.protocol.layout import STORED, Bundle
from shoal.protocol.work import Contribution, Moved

PARTS = {"weights": 0, "fold": 1, "step": 0, "state": 0, "load": 2}  # name -> number of arguments


State: TypeAlias = Mapping[str, npt.NDArray[Any]]
"""The arrays of an aggregator that must survive a restart beside its weights, by name."""


class Aggregator(Protocol):
    """The owner of a run's weights, optimizer and device. One thread at a time calls it. All five methods are needed.

    An aggregator may have two more methods. `change() -> Bundle | None` returns what the last step changed (around/told.py).
    `brief(task) -> Bundle | None` returns arrays that go down with one task alone, in a layout that the job's `briefs` names;
    `task.briefed` says whether the task's actor has had a brief for its clients before.
    A brief must be a function of what `state()` tells: what other clients contributed since the last step must not change it.
    The arrays are fetched while the run goes on, so they must stay as they are.
    """

    @property
    def linear(self) -> bool:
        """True if a step needs only the weighted sum of the contributions. Then an actor may send one sum over many clients:
        `fold` gets a contribution with `summed` set, whose bundle is a sum in the form of protocol/exact.py."""
        ...

    def weights(self) -> Bundle:
        """The current weights, read-only. Later steps do not change the bundle while anybody holds it or a view of it."""
        ...

    def fold(self, contribution: Contribution) -> None:
        """Add one contribution to those that the next step uses. The bundle's owner may overwrite it once this returns.

        Raises ValueError (or ProtocolError, its subclass), with nothing added, for a contribution that does not fit.
        """
        ...

    def step(self) -> Moved:
        """Make the next weights from everything folded since the last step."""
        ...

    def state(self) -> State:
        """The arrays that must survive a restart beside the weights (moments, counters), by name; empty if there are none."""
        ...

    def load(self, weights: Bundle, state: State) -> None:
        """Go on from weights and state as `weights` and `state` returned them. Contributions folded since are forgotten."""
        ...


def lacking(aggregator: Any) -> list[str]:
    """Returns the names of the parts of an Aggregator that this object lacks, or that take other arguments."""
    missing = unfit(aggregator, PARTS)
    return missing if isinstance(getattr(aggregator, "linear", None), bool) else [*missing, "linear"]


def amiss(aggregator: Aggregator) -> str:
    """Returns what is wrong with the values that an aggregator gives at its start, in one line; "" if nothing is."""
    weights, state = aggregator.weights(), aggregator.state()
    if not isinstance(weights, Bundle):
        return f"weights() gave {type(weights).__name__}; expected a Bundle: Bundle.pack({{name: array}})"
    if not isinstance(state, Mapping):
        return f"state() gave {type(state).__name__}; expected a dict of numpy arrays by name, {{}} if there is nothing to keep"
    for name, value in state.items():
        if not isinstance(value, np.ndarray | np.generic):
            return f"state()[{name!r}] is {type(value).__name__}; expected a numpy array"
        if value.dtype.str not in STORED:
            return f"state()[{name!r}] has dtype {value.dtype}; a snapshot holds {', '.join(STORED.values())}"
    return ""
