"""Federated analytics: the sum, histogram or quantiles of all clients' numbers, exactly.

The one idea: a step adds up tallies. A sum and a histogram are one step. A quantile is four: its float32 number has four bytes,
and each step finds the next one from the counts of all clients' numbers that begin with the bytes found so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.aggregators import State
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.exact import PartialSum
from shoal.protocol.grid import GRID
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.ordering import floats_of
from shoal.protocol.work import Contribution, Moved

Counts: TypeAlias = npt.NDArray[Any]

DIGITS = 4  # steps of a quantile, a byte each


def tally_layout(query: str, width: int, bins: int, percentiles: int) -> Layout:
    """The layout of the answers and of a client's tallies, all float64.

    count [1]: clients' rows. sum: total [width]. histogram: histogram [width, bins + 2], first and last for numbers outside.
    quantiles: counts [width, percentiles, 256], and in the answers prefix, ranks and quantiles [width, percentiles].
    """
    shapes: dict[str, tuple[int, ...]] = {"count": (1,)}
    match query:
        case "sum":
            shapes["total"] = (width,)
        case "histogram":
            shapes["histogram"] = (width, bins + 2)
        case _:
            shapes |= {
                "counts": (width, percentiles, 256),
                **dict.fromkeys(("prefix", "ranks", "quantiles"), (width, percentiles)),
            }
    return Layout.of({name: ("f8", shape) for name, shape in shapes.items()})


class Tallies:
    """The sum of all clients' tallies, and what follows from it.

    The weights are the answers. count and sums of whole numbers are exact up to 2**30. A client's sum of other numbers is
    rounded once, to a multiple of 2**-32. A quantile p is the smallest number that at least p % of all numbers are not above
    (numpy's "inverted_cdf"). The sums have the same bits in any order.
    """

    linear: ClassVar[bool] = True

    def __init__(self, query: str, layout: Layout, percentiles: Sequence[int], clients: int) -> None:
        self.query, self.percentiles = query, percentiles
        self.now = Bundle.zeros(layout)
        self.sum = PartialSum(layout)
        self.sum.gauge.shares = clients
        self.steps = 0

    def weights(self) -> Bundle:
        return self.now

    def fold(self, contribution: Contribution) -> None:
        """Raises ProtocolError, with nothing added, for other layouts and tallies that are not finite."""
        many = len(contribution.task.clients) or 1
        if contribution.summed:
            self.sum.merge(contribution.bundle, contribution.work.weight, many)
        elif contribution.work.weight != 1.0:
            raise ProtocolError(f"a client's tallies weigh 1, not {contribution.work.weight:g}")
        else:
            self.sum.add(contribution.bundle, 1.0)

    def step(self) -> Moved:
        """Metrics: count, clients; `mean` of a single column; `p50` and so on of a single column after the last step;
        `quantile_error`, the most that a quantile may be away from each number with the bytes found so far, over all quantiles
        (not told while a quantile may be infinite)."""
        following = self.now.copy()
        totals = Bundle(self.now.layout, (self.sum.totals["f8"] * GRID).view(np.uint8))
        clients, count = self.sum.weight, float(totals["count"][0])
        if self.steps and count != self.now["count"][0]:
            had = f"{self.now['count'][0]:.0f} rows in version 1 and {count:.0f} in version {self.steps + 1}"
            raise UserError(f"quantiles: the clients that answered have {had}: a client was left out, or its data changed")
        following["count"][...] = count
        metrics = {"count": count, "clients": clients}
        match self.query:
            case "sum":
                following["total"][...] = totals["total"]
                if following["total"].size == 1 and count:
                    metrics["mean"] = float(following["total"][0]) / count
            case "histogram":
                following["histogram"][...] = totals["histogram"]
            case _:
                self._next_digit(following, totals["counts"])
        self.now = following
        self.sum.clear()
        self.steps += 1
        if self.query == "quantiles" and np.isfinite(error := self._error(following["prefix"])):
            metrics["quantile_error"] = error
        if self.query == "quantiles" and self.steps == DIGITS and len(following["quantiles"]) == 1:
            metrics |= {f"p{p}": float(q) for p, q in zip(self.percentiles, following["quantiles"][0], strict=True)}
        return Moved(metrics)

    def _next_digit(self, following: Bundle, counts: Counts) -> None:
        """Find the next byte of each quantile's key. counts [width, percentiles, 256]: of the numbers that share the bytes
        found so far, by their next one. ranks: place of the quantile among these numbers, from 1."""
        ranks = following["ranks"]
        if not self.steps:
            count = int(following["count"][0])
            ranks[...] = [max(1, -(-percent * count // 100)) for percent in self.percentiles]
        upto = np.cumsum(counts, axis=2)
        digit = np.minimum((upto < ranks[..., None]).sum(axis=2), 255)
        before = np.concatenate([np.zeros((*digit.shape, 1)), upto], axis=2)
        ranks -= np.take_along_axis(before, digit[..., None], axis=2)[..., 0]
        following["prefix"][...] = following["prefix"] * 256 + digit
        if self.steps == DIGITS - 1:
            following["quantiles"][...] = floats_of(following["prefix"].astype(np.uint32))

    def _error(self, prefix: Counts) -> float:
        """The largest distance between the least and the greatest number that begin with these bytes."""
        left = 1 << 8 * (DIGITS - self.steps)  # keys that begin with a prefix
        least = floats_of((prefix * left).astype(np.uint32)).astype(np.float64)
        greatest = floats_of((prefix * left + (left - 1)).astype(np.uint32)).astype(np.float64)
        return float((greatest - least).max(initial=0.0))

    def state(self) -> State:
        return {"steps": np.array(self.steps, np.int64)}

    def load(self, weights: Bundle, state: State) -> None:
        self.now, self.steps = weights.copy(), int(state["steps"])
        self.sum.clear()
