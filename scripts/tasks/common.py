"""`shoal.Shared`: arrays that all calls of a pool write into, without a lock.

The one idea: Hogwild! (Niu et al. 2011): where each step of many touches few entries of many, a step that is lost now and then
costs less than waiting for one another does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.layout import aligned
from shoal.protocol.memory import room
from shoal.protocol.shared import Handle, Segment
from shoal.protocol.trusted import Beside

Placed = tuple[str, str, tuple[int, ...], int]  # name, dtype, shape and first byte of an array


class Shared(Mapping[str, npt.NDArray[Any]]):
    """Arrays in memory that this program and the calls of its pools have in common: `shared.w` or `shared["w"]` is the array
    itself, in a call that has `shared` as an argument too.

    **Writes race.** Nothing is locked: `shared.w[index] -= step` reads, subtracts and writes, and what another process has
    written between is lost; an aligned number of at most 8 bytes is never half written. Use it for algorithms that bear this;
    for all others a call returns its result.

    arrays: name -> array, which is copied. Keep the object while calls use it: the memory is given back with the last holder of
    the object or of an array. Raises UserError for arrays of Python objects, or if there is not enough memory.
    """

    __slots__ = ("_arrays", "_placed", "_segment")
    _arrays: dict[str, npt.NDArray[Any]]
    _placed: list[Placed]
    _segment: Segment

    def __init__(self, arrays: Mapping[str, npt.ArrayLike]) -> None:
        if not isinstance(arrays, Mapping) or not arrays or not all(isinstance(name, str) for name in arrays):
            raise UserError('Shared: expected arrays by name, e.g. shoal.Shared({"w": np.zeros(1_000)})')
        given = {name: _given(name, array) for name, array in arrays.items()}
        placed, nbytes = list[Placed](), 0
        for name, array in given.items():
            if array.dtype.hasobject:
                raise UserError(f"Shared: {name!r} has dtype {array.dtype}: expected numbers, which other processes can read")
            placed.append((name, array.dtype.str, array.shape, nbytes))
            nbytes += aligned(array.nbytes)
        left, bound = room()
        if nbytes > left:
            raise UserError(f"Shared: {nbytes:,} bytes of shared memory needed, {left:,} left by the {bound}")
        self._place(Beside.create(max(1, nbytes), common=True), placed)
        for name, array in given.items():
            self._arrays[name][...] = array

    def _place(self, segment: Segment, placed: list[Placed]) -> None:
        object.__setattr__(self, "_segment", segment)
        object.__setattr__(self, "_placed", placed)
        object.__setattr__(self, "_arrays", {one[0]: _array(segment, *one[1:]) for one in placed})

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (self._segment.handle, self._placed)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self._arrays[name]

    def __getattr__(self, name: str) -> npt.NDArray[Any]:
        if name.startswith("_") or name not in self._arrays:
            raise AttributeError(f"Shared has no array {name!r}")
        return self._arrays[name]

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"shared.{name} = ... would write nothing: shared.{name}[...] = ... writes into the array")

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return f"Shared({', '.join(f'{name}: {array.dtype}{list(array.shape)}' for name, array in self._arrays.items())})"


def _given(name: str, array: npt.ArrayLike) -> npt.NDArray[Any]:
    try:
        return np.asarray(array)
    except ValueError as why:
        raise UserError(f"Shared: {name!r} is no array ({why})") from why


def _array(segment: Segment, dtype: str, shape: tuple[int, ...], first: int) -> npt.NDArray[Any]:
    kind = np.dtype(dtype)
    found: npt.NDArray[Any] = segment.data[first : first + math.prod(shape) * kind.itemsize].view(kind).reshape(shape)
    return found


def _opened(handle: Handle, placed: list[Placed]) -> Shared:
    """The arrays of another process. Raises UserError if they are gone."""
    shared = Shared.__new__(Shared)
    try:
        segment = Beside.open(handle, common=True)
    except ProtocolError as gone:
        raise UserError(f"Shared: its program holds it no longer; keep it while calls use it ({gone})") from gone
    shared._place(segment, placed)
    return shared
