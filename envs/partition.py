"""Ways to divide a labelled data set among clients.

The one idea: a partition is an owner for every example, so that each example is used exactly once by construction; then the
examples are listed by owner. Every function takes labels [n] and returns one array of indices per client (int64, none
empty), which follows from (labels, clients, seed, the function's settings) and from nothing else. No client is favoured: what
rounding leaves over goes to clients drawn at random.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.protocol import draws
from shoal.protocol.errors import UserError, binds, within

Labels: TypeAlias = npt.NDArray[Any]
Parts: TypeAlias = list[npt.NDArray[np.int64]]


def iid(labels: Labels, clients: int, *, seed: int) -> Parts:
    """Examples shuffled and dealt out: clients' sizes differ by at most one (McMahan et al. 2017, section 3)."""
    _check_sizes(labels, clients, 1)
    rng = _generator(seed)
    owner = rng.permutation(np.arange(len(labels)) % clients)
    if len(labels) % clients:  # else no client has an example more than others
        owner = rng.permutation(clients)[owner]
    return _by_owner(owner, clients, rng)


def shards(labels: Labels, clients: int, *, seed: int, per_client: int = 2) -> Parts:
    """Examples sorted by label and cut into clients * per_client equal shards; a client gets `per_client` of these at random
    (McMahan et al. 2017)."""
    within("per_client", per_client, first=1)
    _check_sizes(labels, clients, per_client)
    if labels.shape[1:] not in ((), (1,)):
        raise UserError(f"partition=shards: labels {list(labels.shape)} have no order, [n] have; partition=iid, say")
    rng = _generator(seed)
    shuffled = rng.permutation(len(labels))
    by_label = shuffled[np.argsort(labels.reshape(-1)[shuffled], kind="stable")]
    pieces = np.array_split(by_label, clients * per_client)
    dealt = rng.permutation(len(pieces)).reshape(clients, per_client)
    return [np.concatenate([pieces[piece] for piece in hand]) for hand in dealt]


def dirichlet(labels: Labels, clients: int, *, seed: int, alpha: float = 0.5, least: int = 1) -> Parts:
    """Shares of every class, drawn from Dirichlet(alpha) over the clients: few classes and unequal sizes for small alpha.

    The per-class variant of Yurochkin et al. 2019 (section 4) and Li et al. 2022 (NIID-Bench, "p_k ~ Dir"). These draw again
    until every client has enough. Here the largest clients give single random examples away until every client has `least`:
    that always ends, and moves no more examples than it must.
    """
    within("alpha", alpha, above=0.0)
    _check_sizes(labels, clients, least)
    labels = _classes("dirichlet", labels)
    rng = _generator(seed)
    owner = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        owner[members] = np.repeat(np.arange(clients), _shares(len(members), clients, alpha, rng))
    return _filled_up(_by_owner(owner, clients, rng), least, rng)


def dirichlet_by_client(labels: Labels, clients: int, *, seed: int, alpha: float = 0.5) -> Parts:
    """Clients of equal size, each with a mix of classes of its own, drawn from Dirichlet(alpha * classes * shares of the
    classes in the data): few classes for small alpha (Hsu et al. 2019, section 3; pfl-research's benchmarks, alpha=0.1).

    Clients draw their examples in turn, in random order, without replacement. A class that is used up leaves the mixes of the
    clients that follow, so the last ones get what is left. (Hsu et al. let p be any prior; here a mix of classes that are
    equally frequent has parameters `alpha` each, as in pfl.)
    """
    within("alpha", alpha, above=0.0)
    _check_sizes(labels, clients, 1)
    labels = _classes("dirichlet_by_client", labels)
    rng = _generator(seed)
    names, numbers = np.unique(labels, return_inverse=True)
    shuffled = rng.permutation(len(labels))
    members = np.split(shuffled[np.argsort(numbers[shuffled], kind="stable")], np.cumsum(np.bincount(numbers))[:-1])
    left = np.array([len(its) for its in members])
    prior = min(alpha, 1e290) * (left * (len(names) / len(labels)))
    sizes = len(labels) // clients + (rng.permutation(clients) < len(labels) % clients)
    parts: Parts = [np.empty(0, np.int64)] * clients
    for client in rng.permutation(clients).tolist():
        taken = _mixed(int(sizes[client]), rng.dirichlet(prior), left, rng)
        parts[client] = rng.permutation(
            np.concatenate([its[last - many : last] for its, last, many in zip(members, left, taken, strict=True)])
        )
        left -= taken
    return parts


def pathological(labels: Labels, clients: int, *, seed: int, classes: int = 2) -> Parts:
    """Exactly `classes` different classes for every client; a class is divided evenly among the clients that have it.

    The "#C = k" of Li et al. 2022, with classes dealt so that each has as many owners as any other, give or take one.
    """
    within("classes", classes, first=1)
    _check_sizes(labels, clients, classes)
    labels = _classes("pathological", labels)
    names = np.unique(labels)
    if not len(names) / clients <= classes <= len(names):
        raise UserError(
            f"classes={classes}: {clients} clients can divide {len(names)} classes only with "
            f"{math.ceil(len(names) / clients)} to {len(names)} classes each"
        )
    rng = _generator(seed)
    owners = _dealt(len(names), clients, classes, rng)
    owner = np.empty(len(labels), dtype=np.int64)
    for label, its in zip(names, owners, strict=True):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < len(its):
            raise UserError(
                f"classes={classes}: class {label} has {len(members)} examples for {len(its)} clients; use fewer clients"
            )
        owner[members] = rng.permutation(its)[np.arange(len(members)) % len(its)]
    return _by_owner(owner, clients, rng)


def quantity_skew(labels: Labels, clients: int, *, seed: int, alpha: float = 0.5, least: int = 1) -> Parts:
    """Random examples of any class; sizes drawn from Dirichlet(alpha) beyond the first `least` (Li et al. 2022, "q ~ Dir")."""
    within("alpha", alpha, above=0.0)
    _check_sizes(labels, clients, least)
    rng = _generator(seed)
    sizes = least + _shares(len(labels) - clients * least, clients, alpha, rng)
    return np.split(rng.permutation(len(labels)), np.cumsum(sizes)[:-1])


PARTITIONS: Mapping[str, Callable[..., Parts]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "dirichlet_by_client": dirichlet_by_client,
    "shards": shards,
    "pathological": pathological,
    "quantity_skew": quantity_skew,
}
"""Partitions by name. Each is called as PARTITIONS[name](labels, clients, seed=seed, **its own settings)."""


def classes_of(labels: Labels) -> Labels | None:
    """The class of each example, [n], for labels [n] or [n, 1] that are whole numbers, or floats that are all 0 or 1; None for
    labels that are no classes."""
    if labels.shape[1:] not in ((), (1,)):
        return None
    flat = labels.reshape(-1)
    return flat if flat.dtype.kind in "biu" or np.isin(flat, (0, 1)).all() else None


def by_column(owners: npt.NDArray[Any]) -> tuple[list[Any], Parts]:
    """(clients' names, their indices) of a column that has the name of each example's client, [n]: names in rising order, a
    client's examples in the order of the data. Raises UserError for a column that is no name for each, or has missing ones."""
    if owners.ndim != 1 or owners.dtype.kind not in "biufOUST":
        raise UserError(f"clients' names are {owners.dtype}{list(owners.shape)}: expected numbers or texts [n]")
    if missing := sum(name is None or name != name for name in owners.tolist()):
        raise UserError(
            f"{missing} of {len(owners)} examples have no client (None or nan): fill the column in, or drop their rows"
        )
    try:
        names, numbers = np.unique(owners, return_inverse=True)
    except TypeError:  # numbers beside texts
        names, numbers = np.unique(owners.astype(str), return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    return names.tolist(), np.split(order, np.cumsum(np.bincount(numbers))[:-1])


def parts_of(partition: Callable[..., Any], labels: Labels, clients: int, seed: int) -> Parts:
    """The indices of each client, checked, from a user's own partition, which is called like those in PARTITIONS.

    Raises UserError naming the client, for a client without indices, an index out of range, and an index given twice.
    """
    name, n = getattr(partition, "__name__", type(partition).__name__), len(labels)
    named = binds(partition, labels, clients, seed=seed)  # as those in PARTITIONS; a name of its own will do
    found = partition(labels, clients, seed=seed) if named else partition(labels, clients, seed)
    if not hasattr(found, "__len__") or len(found) != clients:
        gave = len(found) if hasattr(found, "__len__") else type(found).__name__
        raise UserError(f"partition {name} gave {gave}: expected a list of {clients} arrays of indices, one a client")
    owner = np.full(n, -1)
    parts: Parts = []
    for client, its in enumerate(found):
        try:
            part = np.asarray(its)
        except ValueError:
            raise UserError(f"partition {name}, client {client}: lists of unequal lengths, not whole numbers [n]") from None
        if part.ndim != 1 or not part.size or part.dtype.kind not in "iu":
            shown = f"{part.dtype}{list(part.shape)}"
            raise UserError(f"partition {name}, client {client}: {shown}; expected at least one index, whole numbers [n]")
        if (outside := part[(part < 0) | (part >= n)]).size:
            raise UserError(f"partition {name}, client {client}: index {outside[0]}; expected 0 to {n - 1}")
        each, times = np.unique(part, return_counts=True)
        if (twice := each[(times > 1) | (owner[each] >= 0)]).size:
            raise UserError(f"partition {name}, client {client}: index {twice[0]} is given twice; expected once at most")
        owner[part] = client
        parts.append(part.astype(np.int64))
    return parts


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(draws.key(seed, "partition")))


def _by_owner(owner: npt.NDArray[np.int64], clients: int, rng: np.random.Generator) -> Parts:
    """The indices of each client's examples, in random order."""
    order = rng.permutation(len(owner))
    order = order[np.argsort(owner[order], kind="stable")]
    return np.split(order, np.cumsum(np.bincount(owner, minlength=clients))[:-1])


def _shares(total: int, clients: int, alpha: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """`total` cut into `clients` whole numbers, in proportions from Dirichlet(alpha): cut where the running sum says.

    All cuts are moved by one random part of an example and then rounded down, so that every client expects its exact share.
    """
    running = np.cumsum(rng.dirichlet(np.full(clients, min(alpha, 1e290))))  # equal long before; the sum of draws stays finite
    cuts = np.minimum((running[:-1] * total + rng.random()).astype(np.int64), total)
    return np.diff(cuts, prepend=0, append=total)


def _mixed(
    size: int, mix: npt.NDArray[np.float64], left: npt.NDArray[np.int64], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """`size` examples by class, drawn by `mix`. Of a class no more than is left; the rest is drawn again from other classes, by
    the mix, or by what is left if the mix has none of these."""
    taken = np.zeros(len(left), np.int64)
    while (missing := size - int(taken.sum())) > 0:
        share = np.where(taken < left, mix, 0.0)
        if not share.sum() > 0:
            share = (left - taken).astype(np.float64)
        taken = np.minimum(taken + rng.multinomial(missing, share / share.sum()), left)
    return taken


def _filled_up(parts: Parts, least: int, rng: np.random.Generator) -> Parts:
    """Make the largest parts give their last examples away until every part has `least`. Of equal parts a random one gives.

    The caller has checked that there are enough examples, so the largest part has more than `least`.
    """
    largest = [(-len(parts[client]), turn, client) for turn, client in enumerate(rng.permutation(len(parts)).tolist())]
    heapq.heapify(largest)
    for client, part in enumerate(parts):
        given = []
        for _ in range(least - len(part)):
            size, turn, donor = largest[0]
            given.append(parts[donor][-1])
            parts[donor] = parts[donor][:-1]
            heapq.heapreplace(largest, (size + 1, turn, donor))
        if given:
            parts[client] = np.concatenate([part, np.asarray(given, dtype=np.int64)])
    return parts


def _dealt(classes: int, clients: int, each: int, rng: np.random.Generator) -> list[list[int]]:
    """The owners of each class: the clients, in a random order, each take the `each` classes with the fewest owners, ties at
    random. A client that takes early has more classes of few owners, and so more examples."""
    owners: list[list[int]] = [[] for _ in range(classes)]
    counts = np.zeros(classes, dtype=np.int64)
    for client in rng.permutation(clients).tolist():
        taken = np.lexsort((rng.random(classes), counts))[:each]
        counts[taken] += 1
        for label in taken:
            owners[label].append(client)
    return owners


def _classes(partition: str, labels: Labels) -> Labels:
    if (found := classes_of(labels)) is None:
        raise UserError(
            f"partition={partition}: needs classes, whole numbers [n]; the labels are {labels.dtype}{list(labels.shape)}; "
            "partition=iid, say"
        )
    return found


def _check_sizes(labels: Labels, clients: int, least: int) -> None:
    within("clients", clients, first=1)
    within("least", least, first=1)
    if len(labels) < clients * least:
        raise UserError(
            f"clients={clients}: {len(labels)} examples are too few for {least} each; use at most {len(labels) // least}"
        )
