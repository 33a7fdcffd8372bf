"""The making of one batch, in an actor or in the user's own process.

The one idea: an example depends on (seed, epoch, number) and on no example before it, so a batch is the same whoever makes it,
and when it is made again.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeAlias

import numpy as np

from shoal.actors.workers.call import GIVEN
from shoal.protocol.draws import kept_globals, key, set_globals
from shoal.protocol.errors import UserError, signed
from shoal.tasks.sources import Source

NOBODY, TOGETHER = -2, -1  # in place of an example's number: the batch is not begun; its examples are put together
INSTEAD = "make them alike in transform=, or give collate="
Collate: TypeAlias = Callable[[list[Any]], Any]


class Preparing:
    """The making of batches. source: None for shards, whose examples travel. transform, collate: as in Loader. at: int64
    [slots], memory that all processes share: the number of the example that the batch of a slot is at."""

    def __init__(
        self, source: Source | None, transform: Callable[..., Any] | None, collate: Collate | None, seed: int, at: Any
    ) -> None:
        self._source, self._transform, self._collate, self._seed, self.at = source, transform, collate, seed, at
        self._how = _takes_generator(transform)
        self._rng: np.random.Generator | None = None
        self._draws = (source is not None and source.runs_code) or (transform is not None and not self._how)

    def batch(self, slot: int, epoch: int, numbers: Sequence[int], given: Sequence[Any] | None) -> Any:
        """A batch of examples. given: these examples, if there is no source. Raises UserError for examples that cannot be
        stacked, and what the user's code raises."""
        if given is None and self._source and not (self._transform or self._collate):
            self.at[slot] = TOGETHER
            if (made := self._source.batch(numbers)) is not None:
                return made
        examples: list[Any] = []
        for place, number in enumerate(numbers):
            self.at[slot] = number
            if self._draws:
                set_globals(self._seed, "example", epoch, number)
            examples.append(self._example(epoch, number, given[place] if given is not None else None))
        self.at[slot] = TOGETHER
        return self._collate(examples) if self._collate else stacked(examples, numbers)

    def here(self, slot: int, epoch: int, numbers: Sequence[int], given: Sequence[Any] | None) -> Any:
        """`batch` in the user's own process, whose global generators stay as they are."""
        with kept_globals() if self._draws else nullcontext():
            return self.batch(slot, epoch, numbers, given)

    def _example(self, epoch: int, number: int, given: Any) -> Any:
        example = self._source.example(number) if self._source else given
        if self._transform is None:
            return example
        if not self._how:
            return self._transform(example)
        if self._rng is None:  # made in the process that uses it
            self._rng = np.random.Generator(np.random.Philox(key=0))
        _set(self._rng, key(self._seed, "transform", epoch, number))
        return self._transform(example, self._rng) if self._how == "second" else self._transform(example, rng=self._rng)


def prepare(slot: int, epoch: int, numbers: Sequence[int], given: Sequence[Any] | None) -> Any:
    """`Preparing.batch` as a call of a pool that was made with a Preparing."""
    its: Preparing = GIVEN.get()
    return its.batch(slot, epoch, numbers, given)


def _set(rng: np.random.Generator, place: int) -> None:
    """Set a Philox generator as Philox(key=place) begins: a fifth of what a new one costs."""
    words = np.array([place & (2**64 - 1), place >> 64], np.uint64)
    zeros = np.zeros(4, np.uint64)
    rng.bit_generator.state = {
        "bit_generator": "Philox",
        "state": {"counter": zeros, "key": words},
        "buffer": zeros,
        "buffer_pos": 4,
        "has_uint32": 0,
        "uinteger": 0,
    }


def _takes_generator(transform: Callable[..., Any] | None) -> str:
    """Return the way in which a transform takes an example's generator: "second" argument, which it demands; by the name "rng";
    "" not at all."""
    if transform is None:
        return ""
    try:
        parameters = list(inspect.signature(transform).parameters.values())
    except (TypeError, ValueError):  # a function of C
        return ""
    if any(one.name == "rng" and one.kind is not one.POSITIONAL_ONLY for one in parameters[1:]):
        return "rng"
    plain = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return "second" if len(plain) > 1 and plain[1].default is plain[1].empty else ""


def stacked(parts: Sequence[Any], numbers: Sequence[int], path: str = "") -> Any:
    """A batch of examples, along a new first axis: numbers and arrays (torch's too) become one array, dicts, lists and tuples
    such of batches, and texts a list. Raises UserError, which names two examples that do not fit each other. path: of the parts
    in their examples."""
    first = parts[0]
    if isinstance(first, str | bytes):
        return list(parts)
    if isinstance(first, Mapping):
        _alike(parts, numbers, path, "keys", lambda part: sorted(map(str, part)) if isinstance(part, Mapping) else type(part))
        return {name: stacked([part[name] for part in parts], numbers, f"{path}[{name!r}]") for name in first}
    if isinstance(first, list | tuple):
        _alike(parts, numbers, path, "lengths", lambda part: len(part) if isinstance(part, list | tuple) else type(part))
        columns = [stacked(column, numbers, f"{path}[{at}]") for at, column in enumerate(zip(*parts, strict=True))]
        return type(first)(*columns) if hasattr(first, "_fields") else type(first)(columns)
    arrays = [_array(part, number, path) for part, number in zip(parts, numbers, strict=True)]
    _alike(arrays, numbers, path, "shapes", lambda array: array.shape)
    return np.stack(arrays)


def _array(part: Any, number: int, path: str) -> Any:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(part, torch.Tensor):
        try:
            return part.detach().cpu().numpy()
        except (TypeError, RuntimeError) as why:
            raise UserError(f"example {number}{path} is a tensor that numpy has no array for ({why}): {INSTEAD}") from why
    if isinstance(part, np.ndarray | np.generic | bool | int | float | complex) and (array := np.asarray(part)).dtype != object:
        return array
    raise UserError(
        f"example {number}{path} is {signed(part)}, which is no number, text, array, tuple, list or dict: {INSTEAD}"
    )


def _alike(parts: Sequence[Any], numbers: Sequence[int], path: str, what: str, of: Callable[[Any], Any]) -> None:
    first = of(parts[0])
    for part, number in zip(parts, numbers, strict=True):
        if (its := of(part)) != first:
            raise UserError(f"examples {numbers[0]} and {number} cannot be stacked{path}: {what} {first} and {its}; {INSTEAD}")
