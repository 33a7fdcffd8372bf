"""Krum and Multi-Krum (Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent"), and
Bulyan (El Mhamdi et al. 2018, "The Hidden Vulnerability of Distributed Learning in Byzantium").

The one idea: a delta is judged by how near its nearest neighbours are. f malicious deltas cannot be near to many others and far
from the honest ones at the same time.

Conventions. Krum's score sums the squared distances to the n - f - 2 nearest *other* deltas, as the paper has it (section 4;
ByzFL counts n - f - 1, Flower max(1, n - f - 2)). Multi-Krum averages the `keep` deltas of smallest score, n - f if keep=0 (the
paper: m; ByzFL: n - f). Of equal scores the client of the lowest number comes first. Bulyan selects theta = n - 2f deltas, one
by one, by Krum among those that are left (with max(1, left - f - 2) neighbours), and averages for each entry the theta - 2f
selected values nearest to their median (section 4.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from shoal.aggregators.median import median
from shoal.aggregators.robust import Choice, Cohort, Rule, Weighted
from shoal.protocol.errors import within


def scores(squares: Tensor, neighbours: int) -> Tensor:
    """Krum's scores: for each delta the sum of squared distances to its nearest `neighbours` others. squares: squared
    distances, float64 [n, n]. Returns float64 [n]."""
    others = squares.clone().fill_diagonal_(torch.inf)
    return others.sort(dim=1).values[:, :neighbours].sum(dim=1)


def chosen(scores: Tensor, keep: int) -> Tensor:
    """Equal weights for the `keep` smallest scores, 0 for all others. Returns float64 [n]."""
    weights = torch.zeros_like(scores)
    weights[scores.argsort(stable=True)[:keep]] = 1.0 / keep
    return weights


def bulyan_selection(squares: Tensor, f: int) -> list[int]:
    """The rows that Bulyan selects, in the order of the cohort."""
    left = list(range(len(squares)))
    for _ in range(len(squares) - 2 * f):
        among = squares[left][:, left]
        best = int(scores(among, max(1, len(left) - f - 2)).argsort(stable=True)[0]) if len(left) > 1 else 0
        left.pop(best)
    return sorted(set(range(len(squares))) - set(left))


def nearest_to_median(x_NB: Tensor, keep: int) -> Tensor:
    """The mean of each column's `keep` values nearest to its median. Of two equally near values the smaller counts as
    nearer."""
    ordered = x_NB.sort(dim=0).values
    near = (ordered - median(ordered)).abs().argsort(dim=0, stable=True)[:keep]
    return ordered.gather(0, near).mean(dim=0)


@dataclass(eq=False)
class MultiKrum(Rule):
    """The step goes along the mean of the `keep` deltas of smallest score. keep: 0 means n - f."""

    keep: int = 0
    name: ClassVar[str] = "multikrum"

    def __post_init__(self) -> None:
        super().__post_init__()
        within("keep", self.keep)

    def choose(self, cohort: Cohort) -> Choice:
        n = len(cohort)
        return Weighted(chosen(scores(cohort.squares, n - self.malicious - 2), min(self.keep or n - self.malicious, n)))


class Krum(Rule):
    """The step goes along the one delta of smallest score."""

    name: ClassVar[str] = "krum"

    def choose(self, cohort: Cohort) -> Choice:
        return Weighted(chosen(scores(cohort.squares, len(cohort) - self.malicious - 2), 1))


class Bulyan(Rule):
    """The step goes along the mean of each entry's selected values that are nearest to their median."""

    name: ClassVar[str] = "bulyan"

    def choose(self, cohort: Cohort) -> Choice:
        selected, f = torch.tensor(bulyan_selection(cohort.squares, self.malicious), device=cohort.device), self.malicious
        return lambda x_NB: nearest_to_median(x_NB[selected], len(selected) - 2 * f)
