"""From what a user calls data to a population of clients.

The one idea: every form of data ends as one function from a client to its examples.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from shoal.envs.datasets import Examples, split
from shoal.envs.partition import PARTITIONS
from shoal.envs.population import Population
from shoal.protocol.errors import UserError


def populated(data: Any, settings: Any, seed: int) -> Population:
    """data: a Population; arrays (x, y); a pair (training, held out) of such; or a function that gives one of these, of the
    settings or of nothing."""
    if callable(data) and not isinstance(data, Population):
        data = data(settings) if inspect.signature(data).parameters else data()
    if isinstance(data, Population):
        if data.clients < settings.clients:
            raise UserError(f"clients={settings.clients}: the data has {data.clients} clients; allowed is from 1 to that")
        return data
    training, held_out = _parts(data, settings)
    return Population.divided(training, _partition(settings)(training.y, settings.clients, seed=seed), held_out)


def _parts(data: Any, settings: Any) -> tuple[Examples, Examples]:
    """The held-out part is the same for every seed of a run, as a test set is, so that curves over seeds compare."""
    match data:
        case Examples():
            return split(data, settings.held_out)
        case (Examples() as training, Examples() as held_out):
            return training, held_out
        case ((x, y), (held_x, held_y)):
            return Examples(x, y), Examples(held_x, held_y)
        case (x, y):
            return split(Examples(x, y), settings.held_out)
    raise UserError(f"data is a {type(data).__name__}: give (x, y) arrays, a Population, or a function that gives one of these")


def _partition(settings: Any) -> Callable[..., Any]:
    own: dict[str, dict[str, Any]] = {
        "dirichlet": {"alpha": settings.alpha},
        "quantity_skew": {"alpha": settings.alpha},
        "shards": {"per_client": settings.shards_per_client},
        "pathological": {"classes": settings.classes},
    }

    def divide(labels: Any, clients: int, *, seed: int) -> Any:
        return PARTITIONS[settings.partition](labels, clients, seed=seed, **own.get(settings.partition, {}))

    return divide
