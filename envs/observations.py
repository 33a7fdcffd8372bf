"""Kinds of observations, as plain arrays.

The one idea: an observation of one part is one array; an observation of several parts (Dict, Tuple) is one structured array
with a field for each part, so that whatever keeps, copies or sends observations need not know how many parts there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from shoal.protocol.errors import UserError
from shoal.protocol.layout import DTYPES

Array = npt.NDArray[Any]
Path = tuple[str | int, ...]
"""The keys that lead to a part: names in a Dict, indices in a Tuple."""


@dataclass(frozen=True, slots=True)
class Observations:
    """Observations as arrays of `shape`. dtype: "u1" for pictures (bytes from 0 to 255 in two dimensions or more), which
    policies scale to [0, 1]; "f4" for everything else, unscaled.

    categories: number of values of a Discrete observation, which becomes one-hot (shape is then (categories,)); 0: another
    kind of observation. start: first value of a Discrete observation.
    """

    shape: tuple[int, ...]
    dtype: str = "f4"
    categories: int = 0
    start: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def encoded(self, observation: Any) -> Array:
        """Observations [B, *shape] from the environment's form, batched. May be a view of `observation`."""
        if self.categories:
            index = np.asarray(observation).astype(np.int64) - self.start
            if (odd := (index < 0) | (index >= self.categories)).any():
                space = f"Discrete({self.categories}, start={self.start})"
                raise UserError(
                    f"an environment's observation is {np.asarray(observation)[odd].flat[0]}, outside its space {space}"
                )
            one_hot = np.zeros((*index.shape, self.categories), np.float32)
            np.put_along_axis(one_hot, index[..., None], 1.0, axis=-1)
            return one_hot
        return np.asarray(observation, dtype=DTYPES[self.dtype])


@dataclass(frozen=True, slots=True)
class Categories:
    """Observations of several whole numbers (MultiDiscrete), which become one-hot, one after the other: arrays [sum(nvec)].

    The i-th number is one of nvec[i] values, of which start[i] is the first.
    """

    nvec: tuple[int, ...]
    start: tuple[int, ...]
    dtype: ClassVar[str] = "f4"

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(self.nvec),)

    @property
    def size(self) -> int:
        return sum(self.nvec)

    def encoded(self, observation: Any) -> Array:
        """Observations [B, sum(nvec)] from the environment's form, batched."""
        index = np.asarray(observation).reshape(len(observation), len(self.nvec)).astype(np.int64) - np.asarray(self.start)
        if (odd := (index < 0) | (index >= np.asarray(self.nvec))).any():
            row, i = np.argwhere(odd)[0]
            many, first = self.nvec[i], self.start[i]
            given = f"{index[row, i] + first} in place {i}"
            raise UserError(
                f"an environment's observation has {given}, outside its space: expected {first} to {first + many - 1}"
            )
        one_hot = np.zeros((len(index), self.size), np.float32)
        firsts = np.array([first for first, _ in pairwise(accumulate(self.nvec, initial=0))])
        np.put_along_axis(one_hot, index + firsts, 1.0, axis=1)
        return one_hot


Part = Observations | Categories


@dataclass(frozen=True, slots=True)
class Named:
    """Observations of several parts (Dict and Tuple, nested too). A part's name is its path, "camera/left" or "0/speed".

    parts: path -> the part. left_out: names of parts that are text, which no policy here reads.
    """

    parts: tuple[tuple[Path, Part], ...]
    left_out: tuple[str, ...] = ()

    @property
    def named(self) -> Mapping[str, Part]:
        """Name -> part, in the order of the space."""
        return {named(path): part for path, part in self.parts}

    @property
    def size(self) -> int:
        """Number of elements of all parts together."""
        return sum(part.size for _, part in self.parts)

    def encoded(self, observation: Any) -> Iterator[tuple[str, Array]]:
        """Yield name and array [B, *shape] of each part, from the environment's form, batched."""
        for path, part in self.parts:
            given = observation
            for key in path:
                given = given[key]
            yield named(path), part.encoded(given)


def named(path: Path) -> str:
    return "/".join(map(str, path))
