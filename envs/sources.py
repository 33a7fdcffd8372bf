"""Data sets in the forms that users have: arrays and tensors, tables, torch data sets. All become `Examples`.

The one idea: an object is known by what it can do (`columns`, `with_format`, items by number), so that no library is imported
that the user did not bring.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.envs.datasets import Examples
from shoal.protocol.errors import UserError

ACCEPTED = (
    'a tuple (x, y) or (x, y, weight) of arrays, (table, "label") of a pandas DataFrame or a Hugging Face table, '
    "a torch Dataset of (x, y) items, or Examples"
)


def is_set(data: Any) -> bool:
    """True if `data` looks like one data set: `examples_of` may still find fault with what is in it."""
    if isinstance(data, tuple):
        named = len(data) == 2 and isinstance(data[1], str | int) and (_is_frame(data[0]) or _is_table(data[0]))
        return named or (len(data) in (2, 3, 4) and all(map(is_array, data)))
    return isinstance(data, Examples) or _has_items(data)


def is_array(data: Any) -> bool:
    """True for arrays, tensors, columns and frames; and for lists, unless they are lists of data sets."""
    return hasattr(data, "shape") or (isinstance(data, list) and not is_listed(data))


def is_listed(data: Any) -> bool:
    """True for a list of data sets."""
    return isinstance(data, list) and bool(data) and is_set(data[0])


def examples_of(data: Any) -> Examples:
    """Returns the examples of one data set. Raises UserError naming what was found and what is accepted."""
    if isinstance(data, Examples):
        return data
    if not is_set(data):
        raise UserError(f"data is {told(data)}: expected {ACCEPTED}")
    if not isinstance(data, tuple):
        tensors = getattr(data, "tensors", None)  # of a TensorDataset
        return examples_of(tensors if isinstance(tensors, tuple) else _columns_of_items(data))
    if isinstance(data[1], str | int):
        return _labelled(_columns_of(data[0]), data[1])
    if len(data) == 4:
        raise UserError(
            "data is a tuple of 4 arrays: (x, y, weight, client) needs partition=natural; else leave the client out"
        )
    return Examples(*(_numbers(array, name) for array, name in zip(data, ("x", "y", "weight"), strict=False)))


def is_labelled_table(data: Any) -> bool:
    """True for (Hugging Face table, label)."""
    return isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], str) and _is_table(data[0])


def owned(data: Any, column: str) -> tuple[Examples, npt.NDArray[Any]]:
    """(examples, the name of each example's client, [n]) of one data set: a table whose `column` has the names, or a tuple of
    arrays (x, y, client) or (x, y, weight, client). Raises UserError for any other, and if the column is missing."""
    if not (isinstance(data, tuple) and is_set(data)):
        raise UserError(f"partition=natural: data is {told(data)}: expected (table, label), (x, y, client) or a Population")
    if isinstance(data[1], str | int):
        columns = dict(_columns_of(data[0]))
        names = ", ".join(str(name) for name in columns if name != data[1])
        if not column:
            raise UserError(f"partition=natural: partition_by names the column of the clients; partition_by=one of {names}")
        if column not in columns or column == data[1]:
            raise UserError(f"partition_by={column}: the table has the columns {names}: expected one of them")
        return _labelled({name: its for name, its in columns.items() if name != column}, data[1]), array_of(columns[column])
    if column:
        raise UserError(f"partition_by={column}: the data are arrays, which have no columns; give (x, y, client) instead")
    if len(data) == 2:
        raise UserError("partition=natural: data is (x, y): expected (x, y, client), with the client of each example")
    examples, owners = examples_of(data[:-1]), array_of(data[-1])
    if owners.shape != (len(examples),):
        raise UserError(f"clients of the examples have shape {list(owners.shape)}: expected [{len(examples)}], one an example")
    return examples, owners


def split_table(data: Any) -> tuple[Any, Any] | None:
    """Returns ((training, label), (held out, label)) for (tables, label), where `tables` maps the name of a split to a table,
    as Hugging Face's DatasetDict does; None for anything else. Raises UserError if train, or test and validation, is missing.
    """
    if not (isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Mapping) and isinstance(data[1], str)):
        return None
    tables, label = data
    held_out = next((name for name in ("test", "validation") if name in tables), None)
    if "train" not in tables or held_out is None:
        raise UserError(f"data has the splits {', '.join(map(str, tables))}: expected train, and test or validation")
    return (tables["train"], label), (tables[held_out], label)


def told(data: Any) -> str:
    """The kind of `data`, in words for an error: "a list of 3 (str, ...)"."""
    if isinstance(data, tuple):
        return f"a tuple ({', '.join(type(each).__name__ for each in data[:4])}{', ...' * (len(data) > 4)})"
    if isinstance(data, list):
        return f"a list of {len(data)}" + (f" ({type(data[0]).__name__}, ...)" if data else "")
    package, name = type(data).__module__.split(".")[0], type(data).__qualname__.split(".")[-1]
    return f"of type {name}" if package in ("builtins", "__main__") else f"of type {name} ({package})"


def _is_frame(data: Any) -> bool:
    return hasattr(data, "columns") and hasattr(data, "to_numpy")


def _is_table(data: Any) -> bool:
    parts = ("column_names", "with_format", "__len__")  # a streamed table has no length
    return all(hasattr(data, part) for part in parts) and not isinstance(data, Mapping)


def _has_items(data: Any) -> bool:
    plain = isinstance(data, list | tuple | Mapping | str | bytes) or hasattr(data, "shape") or _is_table(data)
    return not plain and hasattr(data, "__getitem__") and hasattr(data, "__len__")


def _columns_of(table: Any) -> Mapping[Any, Any]:
    if _is_table(table):
        columns: Mapping[Any, Any] = table.with_format("numpy")[:]
        return columns
    names = Counter(table.columns)
    for name, times in names.items():
        if times > 1:
            raise UserError(f"the table has {times} columns called {name!r}: rename all but one")
    return {name: table[name] for name in names}


def _columns_of_items(dataset: Any) -> tuple[npt.NDArray[Any], ...]:
    items = [dataset[i] for i in range(len(dataset))]
    if not items:
        raise UserError(f"data is {told(dataset)} without any items")
    for i, item in enumerate(items):
        if not isinstance(item, tuple | list) or len(item) != len(items[0]) or len(item) not in (2, 3):
            raise UserError(f"item {i} of {type(dataset).__name__} is {told(item)}: expected a pair (x, y), or (x, y, weight)")
    names = ("x", "y", "weight")[: len(items[0])]
    return tuple(_stacked([item[part] for item in items], name) for part, name in enumerate(names))


def _labelled(columns: Mapping[Any, Any], label: Any) -> Examples:
    """Examples of a table. A single column of arrays beside the label is x as it is; columns of numbers become x float32
    [n, columns]."""
    if label not in columns or len(columns) < 2:
        raise UserError(f"the table has the columns {', '.join(map(str, columns))}: expected {label!r}, and others beside it")
    arrays = {name: _numbers(column, f"column {name!r}", whole=True) for name, column in columns.items()}
    y = arrays.pop(label)
    if len(arrays) == 1 and (x := next(iter(arrays.values()))).ndim > 1:
        return Examples(x, y)
    for name, array in arrays.items():
        if array.ndim > 1:
            raise UserError(f"column {name!r} holds arrays {list(array.shape[1:])}: expected numbers beside other columns")
    return Examples(np.stack(list(arrays.values()), axis=1).astype(np.float32), y)


def _numbers(data: Any, name: str, whole: bool = False) -> npt.NDArray[Any]:
    """`data` as an array of numbers, a frame's columns side by side. whole: True refuses nan, which is a missing value."""
    if _is_frame(data):
        columns = _columns_of(data).items()
        return np.stack([_numbers(column, f"column {name!r}", whole=True) for name, column in columns], axis=1)
    found = array = array_of(data)
    if array.dtype == object and array.ndim:
        array = _stacked(list(array), name)
    if array.dtype.kind not in "biuf" or not array.ndim:
        raise UserError(f"{name} holds {found.dtype}{list(found.shape)}: expected numbers [n, ...]; convert it or leave it out")
    if whole and array.dtype.kind == "f" and (missing := int(np.isnan(array).sum())):
        raise UserError(f"{name} has {missing} missing values (nan): fill them in, or drop their rows")
    return array


def _stacked(parts: Sequence[Any], name: str) -> npt.NDArray[Any]:
    arrays = [array_of(part) for part in parts]
    for i, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            raise UserError(f"{name} has shape {list(arrays[0].shape)} in example 0 and {list(array.shape)} in example {i}")
    return np.stack(arrays) if arrays else np.empty(0)


def array_of(data: Any) -> npt.NDArray[Any]:
    """`data` as a numpy array, also if it is a tensor that has a gradient, lies on a device or is bfloat16."""
    if hasattr(data, "detach"):
        data = data.detach().cpu()
    if str(getattr(data, "dtype", "")) == "torch.bfloat16":  # which numpy lacks
        data = data.float()
    try:
        return np.asarray(data)
    except ValueError:  # a list of lists of different lengths
        return np.asarray(list(data), dtype=object)
