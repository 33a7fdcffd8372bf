"""A ring of rows: named arrays with as many places, written one after the other, the oldest overwritten.

The one idea: places are counted from the run's beginning, so a snapshot says which rows it holds by two numbers, and a row lies
at the same place of the ring in every life of the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.aggregators import State
from shoal.aggregators.kept_rows import KeptRows
from shoal.protocol.errors import UserError

Array = npt.NDArray[Any]
Places = npt.NDArray[np.int64]
HELD = 16 << 20  # bytes of rows up to which a snapshot holds them all
FORM = "resume with the settings of the run"


class RowRing:
    """`capacity` places of rows. rows: name -> (dtype, shape of one row) of their arrays, all 0 at first.

    arrays: name -> [capacity, ...]. written: number of rows ever written. row_bytes: of one row.
    """

    def __init__(self, capacity: int, rows: Mapping[str, tuple[Any, tuple[int, ...]]]) -> None:
        self.capacity = capacity
        self.arrays: dict[str, Array] = {name: np.zeros((capacity, *shape), dtype) for name, (dtype, shape) in rows.items()}
        self.row_bytes = row_bytes(rows)
        self.written = 0
        self.kept = KeptRows()

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    @property
    def first(self) -> int:
        """The number of the oldest row that the ring still holds, counted from the run's beginning."""
        return max(0, self.written - self.capacity)

    def places(self, first: int, last: int) -> Places:
        """The places of the rows `first` to before `last`, counted from the run's beginning."""
        return np.arange(first, last, dtype=np.int64) % self.capacity

    def cuts(self, first: int, many: int) -> list[slice]:
        """The places of `many` rows from `first` on, as one slice or two."""
        start = first % self.capacity
        end = start + many
        return [slice(start, min(end, self.capacity))] + ([slice(0, end - self.capacity)] if end > self.capacity else [])

    def write(self, name: str, offset: int, values: Array) -> None:
        """Write values [n, ...] to the places from `offset` behind the newest row on. `advance` makes them rows."""
        done = 0
        for cut in self.cuts(self.written + offset, len(values)):
            self.arrays[name][cut] = values[done : done + cut.stop - cut.start]
            done += cut.stop - cut.start

    def advance(self, many: int) -> None:
        self.written += many

    # Snapshots

    def settle(self, folder: Path) -> None:
        """Keep the rows of a ring above HELD bytes in files of this folder, from the next snapshot on."""
        self.kept.settle(folder)

    def state(self) -> State:
        """The arrays for a snapshot; rows in files are on the disk once this returns. Raises OSError.

        Rows of up to HELD bytes lie in the snapshot. Of a larger ring only what came since the last snapshot is written.
        """
        told = {"replay/written": np.array([self.written], np.int64)}
        if not self.kept.settled or (self.written - self.first) * self.row_bytes <= HELD:
            places = self.places(self.first, self.written)
            return {**told, **{f"replay/rows/{name}": array[places] for name, array in self.arrays.items()}}
        if (since := max(self.first, self.kept.end)) < self.written:
            pieces = (array[cut] for array in self.arrays.values() for cut in self.cuts(since, self.written - since))
            self.kept.save(since, self.written, pieces)
        return {**told, **self.kept.state(self.first)}

    def load(self, state: State) -> None:
        """Go on from a snapshot's arrays, of a ring of any capacity. Rows that it does not hold are 0. Raises UserError if rows
        are not there or have another form."""
        (self.written,) = (int(n) for n in state["replay/written"])
        for array in self.arrays.values():
            array[:] = 0
        if self.kept.told(state):
            self.kept.load(state)
            for first, last, data in self.kept.pieces(self.first):
                self._restore(first, self._apart(last - first, data))
            return
        found = {name: state.get(f"replay/rows/{name}") for name in self.arrays}
        rows = {name: array for name, array in found.items() if array is not None}
        if len(rows) != len(found) or any(array.shape[1:] != self.arrays[name].shape[1:] for name, array in rows.items()):
            raise UserError(f"the snapshot's replay has rows of another form: {FORM}")
        self._restore(self.written - len(next(iter(rows.values()))), rows)

    def _restore(self, first: int, rows: Mapping[str, Array]) -> None:
        """Put rows back to their places: the newest `capacity`, if there are more."""
        many = len(next(iter(rows.values())))
        skipped = max(0, many - self.capacity)
        places = self.places(first + skipped, first + many)
        for name, array in rows.items():
            self.arrays[name][places] = array[skipped:]

    def _apart(self, many: int, data: memoryview) -> dict[str, Array]:
        """The arrays of a file's bytes, of `many` rows."""
        if len(data) != many * self.row_bytes:
            raise UserError(f"the run's replay has rows of another form: {FORM}")
        rows, at = {}, 0
        for name, array in self.arrays.items():
            size = array.dtype.itemsize * math.prod(array.shape[1:]) * many
            rows[name] = np.frombuffer(data[at : at + size], array.dtype).reshape(many, *array.shape[1:])
            at += size
        return rows


def row_bytes(rows: Mapping[str, tuple[Any, tuple[int, ...]]]) -> int:
    """Bytes of one row of these arrays, name -> (dtype, shape)."""
    return sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in rows.values())
