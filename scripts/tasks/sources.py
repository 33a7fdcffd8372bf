"""The sources that a loader reads examples from, and the order in which it reads.

The one idea: an order is a function of (seed, epoch), and an example of its number, so nobody has to remember what was read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from shoal.protocol.draws import key
from shoal.protocol.errors import UserError, signed

FORMS = "expected arrays, or an object with __getitem__ and __len__, or an iterable of shards"


class Source(Protocol):
    """Examples with numbers from 0. runs_code: reading one runs a user's code, which may draw random numbers."""

    runs_code: bool

    def __len__(self) -> int: ...

    def example(self, number: int) -> Any: ...

    def batch(self, numbers: Sequence[int]) -> Any | None:
        """A batch of these examples, made at once; None if it has to be made of single examples."""


class Columns:
    """Arrays of one length: an example is an entry of each. form: makes the example, or the batch, of the list of entries."""

    runs_code = False

    def __init__(self, arrays: Sequence[Any], form: Any) -> None:
        """Raises UserError if the lengths differ."""
        lengths = [len(array) for array in arrays]
        if len(set(lengths)) > 1:
            raise UserError(f"dataset: its arrays have {', '.join(map(str, lengths))} entries; all need the same number")
        self._arrays, self._form = arrays, form
        self._at_once = all(type(array) in (np.ndarray, np.memmap) and array.dtype != object for array in arrays)

    def __len__(self) -> int:
        return len(self._arrays[0])

    def example(self, number: int) -> Any:
        return self._form([array[number] for array in self._arrays])

    def batch(self, numbers: Sequence[int]) -> Any | None:
        return self._form([np.asarray(array[numbers]) for array in self._arrays]) if self._at_once else None


class Items:
    """An object with __getitem__ and __len__."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self.runs_code = type(dataset) not in (list, tuple)

    def __len__(self) -> int:
        return len(self._dataset)

    def example(self, number: int) -> Any:
        return self._dataset[number]

    def batch(self, numbers: Sequence[int]) -> Any | None:
        return None


def source_of(dataset: Any, name: str = "dataset") -> Source | None:
    """The source that an object is; None for an iterable of shards. Raises UserError if the object is neither."""
    if hasattr(dataset, "columns") and hasattr(dataset, "to_numpy"):
        raise UserError(f"{name} is {signed(dataset)}, a frame: give its columns as a tuple or dict of arrays")
    if isinstance(dataset, Iterator) or _streams(dataset):
        return None
    if isinstance(dataset, str | bytes) or getattr(dataset, "shape", None) == ():
        raise UserError(f"{name} is {signed(dataset)}: {FORMS}")
    if _is_array(dataset):
        return Columns([dataset], lambda parts: parts[0])
    if isinstance(dataset, tuple) and dataset and all(map(_is_array, dataset)):
        return Columns(dataset, tuple)
    if isinstance(dataset, Mapping):
        if not dataset or not all(map(_is_array, dataset.values())):
            raise UserError(f"{name} is a dict: expected arrays for its values, one entry an example")
        names = list(dataset)
        return Columns(list(dataset.values()), lambda parts: dict(zip(names, parts, strict=True)))
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return Items(dataset)
    if not isinstance(dataset, Iterable):
        raise UserError(f"{name} is {signed(dataset)}: {FORMS}")
    return None


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and len(value.shape) > 0


def _streams(dataset: Any) -> bool:
    """True for torch's IterableDataset, whose items are examples, and which inherits a __getitem__ that it lacks."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(dataset, torch.utils.data.IterableDataset)


def shards_of(dataset: Any) -> Iterable[Any]:
    """The shards of an object that is no source."""
    return [iter(dataset)] if _streams(dataset) else dataset


def order(many: int, shuffle: bool, seed: int, *place: int) -> npt.NDArray[np.int64]:
    """The numbers below `many`, int64 [many]: as they are, or in an order that depends on (seed, place) alone."""
    if not shuffle:
        return np.arange(many)
    return np.random.Generator(np.random.Philox(key=key(seed, "loader", *place))).permutation(many)


def stream(shards: Iterable[Any], shuffle: bool, seed: int, epoch: int, skip: int) -> Iterator[tuple[int, Any]]:
    """The numbers and examples of an epoch, shard after shard, without the first `skip` of them. A shard with a length is
    shuffled in itself, and is not read if all of it is skipped. Raises UserError for a shard that cannot be shuffled."""
    first = 0
    for at, shard in enumerate(shards):
        source = source_of(shard, f"shard {at}")
        if source is None:
            if shuffle:
                raise UserError(
                    f"shuffle=True: shard {at} has no length; give shards that are lists or arrays, or shuffle=False"
                )
            number = first
            for number, example in enumerate(shard, first):
                if number >= skip:
                    yield number, example
                first = number + 1
            continue
        if first + len(source) > skip:
            for place in order(len(source), shuffle, seed, epoch, at)[max(0, skip - first) :].tolist():
                yield first + place, source.example(place)
        first += len(source)


def cut(many: int, batch_size: int, drop_last: bool) -> int:
    """The number of batches of `many` examples."""
    return many // batch_size if drop_last else -(-many // batch_size)
