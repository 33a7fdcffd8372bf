"""Federated clients and the data of each.

The one idea: a client is an index. A million clients are one array sorted by client and a million and one offsets; a
client's data are a view, made when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.envs.datasets import Examples
from shoal.envs.sources import examples_of
from shoal.protocol.draws import globally
from shoal.protocol.errors import UserError, within


@dataclass(frozen=True, eq=False)
class Population:
    """The clients of a job and their data.

    clients: number of clients; a client is a number from 0 to clients - 1.
    examples: function from a client to its data, the same at each call, in any process: Examples, or any data set that
    sources.py accepts.
    held_out: examples that no client trains on, for the central evaluation; None: there are none.
    notes: lines about the data that a person is told when a run begins. sizes: each client's number of examples, int64
    [clients]; None: not known. divides: the one data set that the clients' examples are parts of, sorted by client; None: none.
    arrays: client -> its arrays (x, y) or (x, y, weight), of the clients whose data sets are in memory; None: not known.
    """

    clients: int
    examples: Callable[[int], Any]
    held_out: Examples | None = None
    notes: tuple[str, ...] = ()
    sizes: npt.NDArray[np.int64] | None = None
    divides: Examples | None = None
    arrays: Mapping[int, tuple[Any, ...]] | None = None

    def __post_init__(self) -> None:
        within("clients", self.clients, first=1)
        object.__setattr__(self, "examples", _checked(self.examples, self.divides is None))

    @classmethod
    def divided(
        cls,
        examples: Examples,
        parts: Sequence[npt.NDArray[np.int64]],
        held_out: Examples | None = None,
        notes: tuple[str, ...] = (),
    ) -> Population:
        """The population of one data set and a partition of it (envs/partition.py). Copies the examples once, by client."""
        sizes = np.array([len(part) for part in parts], dtype=np.int64)
        return cls.in_order(examples[np.concatenate(parts)], sizes, held_out, notes)

    @classmethod
    def in_order(
        cls,
        by_client: Examples,
        sizes: npt.NDArray[np.int64],
        held_out: Examples | None = None,
        notes: tuple[str, ...] = (),
    ) -> Population:
        """The population of one data set that is sorted by client. sizes: each client's number of examples, int64 [clients].
        Makes no copy."""
        if (empty := np.flatnonzero(sizes == 0)).size:
            some = f"{len(empty)} of {len(sizes)} clients have no examples ({listed(empty.tolist())})"
            raise UserError(f"{some}; {len(by_client)} examples are divided: use fewer clients")
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        return cls(len(sizes), _slices(by_client, offsets), held_out, notes, sizes, by_client)

    def check_classes(self, classes: int, ignored: int | None) -> None:
        """Raises UserError for a label in memory that is none of `classes`, counted from 0, and not `ignored`."""
        for examples in (self.divides, self.held_out):
            if examples is not None and (odd := _no_classes(examples.y, classes, ignored)).size:
                raise UserError(_told_label(odd[0], classes))
        for client, (_, y, *_) in (self.arrays or {}).items():
            if (odd := _no_classes(np.asarray(y), classes, ignored)).size:
                raise UserError(f"client {client}: {_told_label(odd[0], classes)}")

    def without_numbers(self) -> list[int]:
        """The clients that are known to have NaN or an infinity among their inputs, labels or weights."""
        if self.arrays:
            return [client for client, parts in self.arrays.items() if any(map(_odd_rows, map(np.asarray, parts)))]
        if (data := self.divides) is None or self.sizes is None:
            return []
        odd = [_odd_rows(array) for array in (data.x, data.y, data.weight) if array is not None]
        rows = np.array(sorted({row for its in odd for row in its}), np.int64)
        return [int(client) for client in np.unique(np.searchsorted(np.cumsum(self.sizes), rows, side="right"))]


def _no_classes(y: npt.NDArray[Any], classes: int, ignored: int | None) -> npt.NDArray[Any]:
    """Return the labels that are none of `classes` and not ignored; none if the labels are no whole numbers."""
    if y.dtype.kind not in "iu":
        return y[:0]
    odd: npt.NDArray[Any] = y[(y < 0) | (y >= classes)]
    return odd if ignored is None else odd[np.not_equal(odd, ignored)]


def _told_label(label: Any, classes: int) -> str:
    return f"y holds the label {label}: the model has outputs for {classes} classes, 0 to {classes - 1}"


def _odd_rows(array: npt.NDArray[Any]) -> list[int]:
    """Return the numbers of the examples that hold NaN or an infinity."""
    if array.dtype.kind != "f" or not array.size:
        return []
    flat = array.reshape(len(array), -1)
    rows = np.flatnonzero(~np.isfinite(np.einsum("ij->i", flat)))  # a sum may only overflow
    return [int(row) for row in rows[~np.isfinite(flat[rows]).all(axis=1)]]


def listed(clients: Sequence[int]) -> str:
    """The first eight clients' numbers, for a person."""
    return ", ".join(map(str, clients[:8])) + ", ..." * (len(clients) > 8)


def _checked(of: Callable[[int], Any], draws: bool) -> Callable[[int], Examples]:
    """A function from a client to its Examples, around one that returns any data set. Raises UserError naming the client.

    draws: True if the function is a user's, which finds the global generators set from the client.
    """

    def examples(client: int) -> Examples:
        with globally(0, "examples", client) if draws else nullcontext():
            found = of(client)
        try:
            return examples_of(found)
        except UserError as wrong:
            raise UserError(f"client {client}: {wrong}") from None

    return examples


def _slices(examples: Examples, offsets: npt.NDArray[np.int64]) -> Callable[[int], Examples]:
    """The function from client c to examples[offsets[c] : offsets[c + 1]]."""

    def of(client: int) -> Examples:
        if not 0 <= client < len(offsets) - 1:
            raise IndexError(f"client {client} is not one of the {len(offsets) - 1} clients, counted from 0")
        return examples[offsets[client] : offsets[client + 1]]

    return of
