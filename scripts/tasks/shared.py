"""Arrays that several calls have, by identity: each goes into shared memory once, without being asked for.

The one idea: an array that is met a second time will be met a third time, and an array that is met once is not kept. What lies
in shared memory is given back with the array itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.protocol.trusted import LARGE, Apart, Parcel, opened, pack, pack_apart, read

KEPT = 128  # arrays that are in shared memory at a time, each of which takes two descriptors


class Shared:
    """writable: bytes from which on an array cannot be written; None: any array can, and a write stays in the
    process that makes it. other: asked first how an object travels, as `pack_apart` asks. packed: puts an array into shared
    memory; what it returns does not hold the array. most: arrays that are in shared memory at a time."""

    def __init__(
        self,
        writable: int | None = None,
        other: Apart | None = None,
        packed: Callable[[Any], Parcel] = pack,
        most: int = KEPT,
    ) -> None:
        self._writable, self._other, self._packed, self._most = writable, other, packed, most
        self._arrays: dict[int, tuple[weakref.ref[Any], Parcel | None]] = {}
        self._many = 0

    def clear(self) -> None:
        self._arrays.clear()
        self._many = 0

    def forget(self, name: int) -> None:
        if known := self._arrays.pop(name, None):
            self._many -= known[1] is not None

    def parcel(self, value: object) -> tuple[Parcel, list[Parcel]]:
        """The parcel of an object, and parcels that must be held until it is opened. Raises UserError."""
        held: list[Parcel] = []
        return pack_apart(value, lambda part: self._apart(part, held)), held

    def _apart(self, part: Any, held: list[Parcel]) -> tuple[Any, ...] | None:
        if self._other and (its := self._other(part)) is not None:
            return its
        return self._array(part, held) if isinstance(part, np.ndarray) and part.nbytes >= LARGE else None

    def _array(self, array: npt.NDArray[Any], held: list[Parcel]) -> tuple[Any, ...] | None:
        if array.dtype.hasobject:
            return None
        name = id(array)
        known = self._arrays.get(name)
        if known is None or known[0]() is not array:
            self._arrays[name] = (weakref.ref(array, partial(_forget, weakref.ref(self), name)), None)
            return None
        if (parcel := known[1]) is None:
            if self._many >= self._most:
                return None
            self._many += 1
            parcel = self._packed(array if array.flags.forc else np.ascontiguousarray(array))
            self._arrays[name] = (known[0], parcel)
        held.append(parcel)
        private = self._writable is None or array.nbytes < self._writable
        return (opened if private else read), (parcel.data,)


def _forget(shared: weakref.ref[Shared], name: int, _: object) -> None:
    """An array is gone, of which `shared` knew by this name. shared: weak, or the two would hold each other, and the memory."""
    if its := shared():
        its.forget(name)
