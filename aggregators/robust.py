"""The frame of servers that withstand malicious clients: a round's deltas are held until all are here, and a rule makes one of
them.

The one idea: a robust rule replaces a mean and nothing else. So a server here stands around a FedAvgServer, which gets one
delta a round, the rule's, and goes along it with the server's optimizer. Distances, norms and angles of deltas follow from the
inner products of all pairs, so a rule that compares clients works on a table [n, n] and never on all the deltas at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from shoal.aggregators import State
from shoal.aggregators.around import Around
from shoal.aggregators.breakdown import fewest
from shoal.aggregators.fedavg import FedAvgServer
from shoal.nets.flat import as_tensor, segment
from shoal.protocol import draws
from shoal.protocol.errors import ProtocolError, within
from shoal.protocol.exact import FLOATS, VALUES, averaged, unfinite
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Metrics, Moved, Task, Work

ENTRIES = 2**21  # numbers of all clients together that are worked on at once, in float64
ROUNDS = "robust_rounds"

EachEntry: TypeAlias = Callable[[Tensor], Tensor]
"""A rule for each entry by itself: values float64 [n, block] -> float64 [block]."""


@dataclass(frozen=True, slots=True)
class Weighted:
    """A rule's choice in weights. rows: weights of the cohort's rows in the trainable entries, float64 [n]; they need not add
    up to 1. others: weights in all other entries, float64 [n], which add up to 1; None: `rows`, which then do. more: a vector
    that is added to the trainable entries, float64 [trainable] on the CPU; None: none."""

    rows: Tensor
    others: Tensor | None = None
    more: Tensor | None = None


Choice: TypeAlias = Weighted | EachEntry


class Cohort:
    """The deltas of a round's clients, in an order that does not depend on the order of arrival.

    Row i is sum_j mixing[i, j] * delta_j. mixing: float64 [n, clients], on the CPU; None: rows are the deltas themselves.
    trainable: the number of float32 entries, from the first one, that distances and norms are over.
    weights: the weights of version `version`, which the deltas are against. A client's delta may lack arrays at the end of a
    dtype: these are 0, or, of dtypes that hold values, as in the weights.
    """

    def __init__(
        self,
        deltas: Sequence[Bundle],
        trainable: int,
        weights: Bundle,
        device: torch.device,
        mixing: Tensor | None = None,
        *,
        version: int = 0,
    ) -> None:
        self.deltas, self.trainable, self.weights, self.device = deltas, trainable, weights, device
        self.mixing, self.version = mixing, version

    def __len__(self) -> int:
        return len(self.deltas) if self.mixing is None else len(self.mixing)

    def mixed(self, mixing: Tensor) -> Cohort:
        """The same deltas with other rows."""
        return Cohort(self.deltas, self.trainable, self.weights, self.device, mixing, version=self.version)

    @cached_property
    def inner(self) -> Tensor:
        """The inner products of all pairs of rows over the trainable entries, float64 [n, n], on the CPU."""
        total = torch.zeros((len(self.deltas), len(self.deltas)), dtype=torch.float64, device=self.device)
        for where in self._blocks(self.trainable, len(self.deltas)):
            x_NB = self._values("f4", where)
            total += x_NB @ x_NB.T
        total = total.cpu()
        total = total if self.mixing is None else self.mixing @ total @ self.mixing.T
        return (total + total.T) / 2  # so that two deltas are equally far from each other, which decides ties

    def along(self, vector: Tensor) -> Tensor:
        """The inner products of each row with a vector over the trainable entries, float64 [trainable]. Returns float64 [n]."""
        total = torch.zeros(len(self.deltas), dtype=torch.float64, device=self.device)
        for where in self._blocks(self.trainable, len(self.deltas)):
            total += self._values("f4", where) @ vector[where].to(self.device)
        return total.cpu() if self.mixing is None else self.mixing @ total.cpu()

    @property
    def squares(self) -> Tensor:
        """The squared distances of all pairs of rows, float64 [n, n]; 0 where rounding made one negative."""
        inner, norms = self.inner, self.inner.diagonal()
        apart = (norms[:, None] + norms[None, :] - 2 * inner).clamp_(min=0)
        return apart.fill_diagonal_(0)

    def delta(self, choice: Choice) -> Bundle:
        """The delta that a rule's choice makes, in the layout of the clients' deltas."""
        same = len({each.layout.digest for each in self.deltas}) == 1
        layout = self.deltas[0].layout if same else self.weights.layout
        out = Bundle.zeros(layout)
        raw = as_tensor(out.data)
        for dtype, size in averaged(layout).items():
            into = segment(raw, layout, dtype)
            trained = min(self.trainable, size) if dtype == "f4" else 0
            for first, last, rows in ((0, trained, True), (trained, size, False)):
                for where in self._blocks(last, len(self.deltas), first):
                    made = self._entries(choice, dtype, where, rows).cpu()
                    into[where] = self._rounded(made, dtype, where)
        return out

    def _entries(self, choice: Choice, dtype: str, where: slice, trainable: bool) -> Tensor:
        """The entries in `where` that a choice makes, float64."""
        if not isinstance(choice, Weighted):
            x_NB = self._values(dtype, where)
            return choice(x_NB if self.mixing is None else self.mixing.to(self.device) @ x_NB)
        weights = choice.rows if trainable or choice.others is None else choice.others
        each = weights if self.mixing is None else weights @ self.mixing
        made = torch.zeros(where.stop - where.start, dtype=torch.float64, device=self.device)
        for row, weight in enumerate(each.tolist()):  # one after another, so that no bit depends on the number of threads
            if weight:
                made.add_(self._row(row, dtype, where), alpha=weight)
        if trainable and choice.more is not None:
            made.add_(choice.more[where].to(self.device))
        return made

    def _rounded(self, made: Tensor, dtype: str, where: slice) -> Tensor:
        if dtype in FLOATS:
            return made
        if dtype == "b1":
            before = segment(as_tensor(self.weights.data), self.weights.layout, dtype)[where]
            return torch.where(made == 0.5, before, made > 0.5)  # a tie changes nothing
        return made.round_()

    def _blocks(self, last: int, rows: int, first: int = 0) -> Iterator[slice]:
        size = max(1, ENTRIES // rows)
        return (slice(start, min(start + size, last)) for start in range(first, last, size))

    def _values(self, dtype: str, where: slice) -> Tensor:
        """The deltas' entries in `where`, float64 [clients, block]."""
        return torch.stack([self._row(row, dtype, where) for row in range(len(self.deltas))])

    def _row(self, row: int, dtype: str, where: slice) -> Tensor:
        """A delta's entries in `where`, float64 [block]."""
        bundle = self.deltas[row]
        has = segment(as_tensor(bundle.data), bundle.layout, dtype)[where].to(self.device, torch.float64)
        if len(has) == where.stop - where.start:
            return has
        if dtype in VALUES:
            whole = segment(as_tensor(self.weights.data), self.weights.layout, dtype)[where].to(self.device, torch.float64)
        else:
            whole = torch.zeros(where.stop - where.start, dtype=torch.float64, device=self.device)
        whole[: len(has)] = has
        return whole


@dataclass(eq=False)
class Rule:
    """A robust rule: a function from a cohort to a choice. A subclass gives `name` and `choose`; the rest is for rules that
    remember something from round to round.

    malicious: number of clients in a round that may be malicious (the papers' f). name: the rule's in breakdown.py.
    """

    malicious: int = 0
    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        within("malicious", self.malicious)

    def choose(self, cohort: Cohort) -> Choice | None:
        """The choice of a round; None if all weights are to stay as they are."""
        raise NotImplementedError

    def follow(self, delta: Bundle) -> Metrics:
        """Take in the delta that the choice of `choose` made. Returns metrics of the rule's own."""
        return {}

    def state(self) -> State:
        """The arrays that must survive a restart, by name."""
        return {}

    def load(self, state: State) -> None:
        """Go on from what `state` returned. Raises ValueError, with nothing changed, if it does not fit."""


class RobustServer(Around):
    """A server around a FedAvgServer: w <- w + update(rule(deltas)).

    Each client counts alike, whatever weight its contribution claims. Distances and norms are over the trainable float32
    entries. Entries of all other arrays (batch normalisation's statistics, float16, bfloat16, float64, counters) take part by
    the same choice: with the same weights of clients, or entry by entry by the same rule. Integers are rounded to whole
    numbers. Arrays of booleans and of one-byte integers hold values: a boolean is true if the rule makes more than 1/2 of it,
    and stays as it is if the rule makes 1/2.

    pre: "none"; "nnm": each delta is first replaced by the mean of the n - f deltas nearest to it, itself included (nearest-
    neighbour mixing, Allouah et al. 2023, algorithm 2); "bucketing": by the means of random groups of `bucket_size` deltas, the
    last of which may be smaller (Karimireddy et al. 2022, algorithm 1), drawn from (seed, step).
    A round with fewer rows than the rule is proven for (breakdown.py) changes no weights: its metric is `too_few`.

    Order of arrival changes no bit: the rule sees the deltas in the order of their clients' numbers.
    Memory: the deltas of a cohort (kept for the next round), up to 64 MB of temporaries, and what the FedAvgServer has.
    """

    linear = False  # a sum over clients would hide each client's own delta

    def __init__(self, server: FedAvgServer, rule: Rule, *, pre: str = "none", bucket_size: int = 2, seed: int = 0) -> None:
        super().__init__(server)
        within("bucket_size", bucket_size, first=1)
        if pre not in ("none", "nnm", "bucketing"):
            raise ValueError(f"pre={pre!r}: must be none, nnm or bucketing")
        self.server, self.rule, self.pre, self.bucket_size, self.seed = server, rule, pre, bucket_size, seed
        self.fewest = fewest(rule.name, rule.malicious)
        self.rounds = 0
        self._held: dict[tuple[tuple[int, ...], int, int], Bundle] = {}
        self._weight = 0.0
        self._free: list[Bundle] = []

    def fold(self, contribution: Contribution) -> None:
        """Raises ProtocolError, with nothing held, for a sum, another layout, NaN and infinities."""
        if contribution.summed:
            raise ProtocolError("a robust rule looks at each client's delta, and this contribution is a sum")
        its, layout = contribution.bundle.layout, self.server.layout
        if not layout.begins_with(its):
            layout.expect(its)
        copy = self._copied(contribution.bundle)
        if name := unfinite(copy):  # of the copy: shared memory may change
            self._free.append(copy)
            raise ProtocolError(f"{name!a} of a contribution holds NaN or an infinity")
        task = contribution.task
        self._held[task.clients, task.version, task.index] = copy
        self._weight += contribution.work.weight

    def step(self) -> Moved:
        """Metrics: those of the FedAvgServer, with `examples` as the sum of all weights; `left_out`, the number of rows without
        weight, if the rule weighs rows; `too_few`, 1 if the weights stay because fewer rows came than the rule is proven for.

        Raises RuntimeError if nothing was folded in.
        """
        if not self._held:
            raise RuntimeError("step(): nothing folded in since the last step; expected at least one contribution")
        deltas, weight = [self._held[key] for key in sorted(self._held)], self._weight
        cohort = Cohort(deltas, self.server.trainable, self.server.weights(), self.server.device, version=self.rounds)
        self.rounds += 1
        rows = -(-len(deltas) // self.bucket_size) if self.pre == "bucketing" else len(deltas)
        if rows < max(self.fewest, self.rule.malicious + 1):
            self._clear()
            return Moved({"examples": weight, "too_few": 1.0}, weights=False)
        cohort = self._mixed(cohort)
        choice = self.rule.choose(cohort)
        out = {"left_out": float((choice.rows == 0).sum())} if isinstance(choice, Weighted) else {}
        if choice is None:
            self._clear()
            return Moved({"examples": weight, "left_out": float(rows)}, weights=False)
        delta = cohort.delta(choice)
        self._clear()
        own = self.rule.follow(delta)
        self.server.fold(Contribution(Task(cohort.version, 0, ()), cohort.version, 0, Work(delta)))  # as if of one client
        return Moved({**self.server.step().metrics, "examples": weight, **out, **own})

    def _mixed(self, cohort: Cohort) -> Cohort:
        n = len(cohort)
        if self.pre == "nnm":
            return cohort.mixed(nearest_mean(cohort.squares, n - self.rule.malicious))
        if self.pre == "bucketing":
            rng = np.random.Generator(np.random.Philox(draws.key(self.seed, "buckets", cohort.version)))
            return cohort.mixed(buckets(torch.from_numpy(rng.permutation(n)), self.bucket_size))
        return cohort

    def _copied(self, bundle: Bundle) -> Bundle:
        """A copy of the bundle, in memory of an earlier round's if there is some of this layout."""
        for at, free in enumerate(self._free):
            if free.layout.digest == bundle.layout.digest:
                into, place = self._free.pop(at), 0
                for piece in bundle.pieces():
                    into.data[place : place + piece.nbytes] = piece
                    place += piece.nbytes
                return into
        return bundle.copy()

    def _clear(self) -> None:
        self._free = [*self._held.values()] or self._free
        self._held, self._weight = {}, 0.0

    def state(self) -> State:
        """The arrays that the FedAvgServer and the rule keep, and the number of steps made, "robust_rounds", int64 []."""
        return {**self.server.state(), **self.rule.state(), ROUNDS: np.array(self.rounds, np.int64)}

    def load(self, weights: Bundle, state: State) -> None:
        if ROUNDS not in state:
            raise ValueError(f"saved state: {ROUNDS!r} is missing: the state is of another method")
        self.rule.load(state)
        self.server.load(weights, state)
        self.rounds = int(state[ROUNDS])
        self._clear()


def nearest_mean(squares: Tensor, k: int) -> Tensor:
    """The mixing in which row i is the mean of the k rows nearest to it, itself included. Of equally near rows those come first
    that come first in the cohort. squares: squared distances, float64 [n, n]. Returns float64 [n, n]."""
    near = squares.clone().fill_diagonal_(-1.0).argsort(dim=1, stable=True)[:, :k]
    return torch.zeros_like(squares).scatter_(1, near, 1.0 / k)


def buckets(order: Tensor, size: int) -> Tensor:
    """The mixing in which each row is the mean of `size` deltas, taken in this order; the last may be of fewer. order: a
    permutation, int64 [n]. Returns float64 [ceil(n / size), n]."""
    parts = [order[first : first + size] for first in range(0, len(order), size)]
    mixing = torch.zeros((len(parts), len(order)), dtype=torch.float64)
    for row, part in enumerate(parts):
        mixing[row, part] = 1.0 / len(part)
    return mixing
