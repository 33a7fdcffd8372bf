"""A population of clients, made from the data that a user gives in one of several forms.

The one idea: every form of data becomes one function from a client to its examples.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.envs.datasets import Examples, split_rows
from shoal.envs.partition import PARTITIONS, by_column, classes_of, parts_of
from shoal.envs.partitioners import Partitioned
from shoal.envs.population import Population
from shoal.envs.sources import ACCEPTED, examples_of, is_labelled_table, is_listed, is_set, owned, split_table, told
from shoal.protocol.draws import globally
from shoal.protocol.errors import UserError, takes


def populated(data: Any, settings: Any, seed: int, classes: bool = True) -> Population:
    """The population that `data` describes.

    data: a Population; one data set (envs/sources.py); a list of data sets, one for each client; a pair (training, held out) of
    these; or a function, () or of the settings, that returns one of these.

    classes: False if the loss says that whole numbers beyond 0 and 1 are no classes (mean squared error, say).
    settings.partition is a name of PARTITIONS, "auto" (dirichlet if the labels are classes, else iid), "natural" (a column or
    an array has the client of each example), or a function (labels, clients, seed) -> an array of indices for each client.
    Raises UserError.
    """
    if callable(data) and not isinstance(data, Population) and not is_set(data):
        with globally(0, "data"):  # the same data for every seed of a run, and in every process
            given = (settings,) if inspect.signature(data).parameters else ()
            takes("data", data, "a function without arguments, or of the settings", *given)
            data = data(*given)
    if not isinstance(data, Population):
        training, held_out = _parts(data)
        if not isinstance(training, list):
            if settings.partition != "natural":
                return _divided(training, held_out, settings, seed, classes)
            data = _natural(training, held_out, settings)
        else:
            data = _one_a_client(training, held_out)
    population: Population = data
    if population.clients < settings.clients:
        raise UserError(f"clients={settings.clients}: the data has {population.clients} clients; allowed is from 1 to that")
    return population


def _parts(data: Any) -> tuple[Any, Any]:
    """(training, held out): a data set or a list of them, and a data set or None."""
    if isinstance(data, list) and not is_listed(data):
        data = tuple(data)  # [x, y]
    if (splits := split_table(data)) is not None:
        return splits
    if is_set(data) or is_listed(data):
        return data, None
    if isinstance(data, tuple) and len(data) == 2 and (is_set(data[0]) or is_listed(data[0])) and is_set(data[1]):
        return data
    more = "a list of these, one a client; a pair (training, held out); a Population; or a function that gives one of these"
    raise UserError(f"data is {told(data)}: expected {ACCEPTED}; {more}")


def _divided(training: Any, held_out: Any, settings: Any, seed: int, classes: bool) -> Population:
    """The training data divided among clients. The held-out part is the same for every seed, so that curves of several seeds
    can be compared."""
    examples = examples_of(training)
    rows, held = _held(examples, held_out, settings)
    labels = examples.y[rows]
    name, notes = settings.partition, tuple[str, ...]()
    if name == "auto":
        whole = classes_of(labels) is not None
        name = "dirichlet" if whole and (classes or np.isin(labels, (0, 1)).all()) else "iid"
        if name == "iid":
            why = "to this loss" if whole else "(whole numbers [n])"
            shown = f"labels {labels.dtype}{list(labels.shape)} are no classes {why}"
            if settings.alpha != 0.5:
                raise UserError(f"alpha={settings.alpha:g}: has no effect, as the {shown}; partition=quantity_skew, say")
            notes = (f"{shown}: the training data is divided at random, partition=iid",)
    if isinstance(name, Partitioned) and is_labelled_table(training):
        name = name.on(training[0], rows)
    parts = _partition(name, settings)(labels, settings.clients, seed=seed)
    return Population.divided(examples, [rows[part] for part in parts], held, notes)


def _held(examples: Examples, held_out: Any, settings: Any) -> tuple[npt.NDArray[np.int64], Examples]:
    """(the numbers of the examples that clients train on, the held-out examples). The examples themselves are copied once, when
    they are sorted by client."""
    if held_out is not None:
        return np.arange(len(examples)), examples_of(held_out)
    rows, apart = split_rows(len(examples), settings.held_out)
    return rows, examples[apart]


def _natural(training: Any, held_out: Any, settings: Any) -> Population:
    """A client for each name in the data's column or array of clients, in the order of the names."""
    examples, owners = owned(training, settings.partition_by)
    if held_out is None:
        rows, apart = split_rows(len(examples), settings.held_out)
        held = examples[apart]
    else:
        rows, three = np.arange(len(examples)), isinstance(held_out, tuple) and len(held_out) > 2
        has_owners = bool(settings.partition_by) or three
        held = owned(held_out, settings.partition_by)[0] if has_owners else examples_of(held_out)
    names, parts = by_column(owners[rows])
    if gone := len(by_column(owners)[0]) - len(names):
        raise UserError(
            f"partition=natural: {gone} of {len(names) + gone} clients have no examples left beside the held-out "
            f"{len(held)} of {len(examples)}: held_out={settings.held_out / 4:g}, say, or give a pair (training, held out)"
        )
    return Population.divided(examples, [rows[part] for part in parts], held)


def _one_a_client(entries: list[Any], held_out: Any) -> Population:
    """A population with one entry for each client. An entry is read when its client is asked for; the first entry is read at
    once, so that a mistake in it is raised here."""
    for client, entry in enumerate(entries):
        if not is_set(entry):
            raise UserError(f"client {client}: data is {told(entry)}: expected {ACCEPTED}")
    sizes = np.array([len(entry[0] if isinstance(entry, tuple) else entry) for entry in entries], np.int64)
    shapes = {client: _shape(entry) for client, entry in enumerate(entries) if sizes[client]}
    known = {client: shape for client, shape in shapes.items() if shape is not None}
    first, wanted = next(iter(known.items()), (0, None))
    for client, shape in known.items():
        if shape != wanted:
            raise UserError(
                f"client {client}: an example's x has shape {list(shape)}, and {list(wanted or ())} at client {first}"
            )
    held = None if held_out is None else examples_of(held_out)
    arrays = {client: entry for client, entry in enumerate(entries) if isinstance(entry, tuple) and all(map(_is_array, entry))}
    population = Population(len(entries), entries.__getitem__, held, sizes=sizes, arrays=arrays)
    population.examples(0)
    return population


def _is_array(part: Any) -> bool:
    """True for an array of numpy's with an axis of examples: it is looked at without being read or converted."""
    return isinstance(part, np.ndarray) and part.ndim > 0


def _shape(entry: Any) -> tuple[int, ...] | None:
    """The shape of one example's x, if it shows without reading; None for a table, a torch data set and lists."""
    if not isinstance(entry, tuple) or isinstance(entry[1], str | int) or not hasattr(entry[0], "shape"):
        return None
    return tuple(entry[0].shape[1:])


def _partition(name: Any, settings: Any) -> Callable[..., Any]:
    own: dict[str, dict[str, Any]] = {
        "dirichlet": {"alpha": settings.alpha},
        "dirichlet_by_client": {"alpha": settings.alpha},
        "quantity_skew": {"alpha": settings.alpha},
        "shards": {"per_client": settings.shards_per_client},
        "pathological": {"classes": settings.classes},
    }

    def divide(labels: Any, clients: int, *, seed: int) -> Any:
        if callable(name):
            return parts_of(name, labels, clients, seed)
        return PARTITIONS[name](labels, clients, seed=seed, **own.get(name, {}))

    return divide
