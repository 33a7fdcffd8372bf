"""Coordinate-wise median and trimmed mean (Yin et al. 2018, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
Rates").

The one idea: each entry by itself. A minority of values, however far away, moves a median or a trimmed mean no further than
the honest values reach.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from shoal.aggregators.robust import Choice, Cohort, Rule


def median(x_NB: Tensor) -> Tensor:
    """The median of each column (definition 1). Of an even number of values it is the mean of the two in the middle."""
    n = len(x_NB)
    ordered = x_NB.sort(dim=0).values
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def trimmed_mean(x_NB: Tensor, f: int) -> Tensor:
    """The mean of each column without its f smallest and f largest values (definition 2, with beta = f / n)."""
    return x_NB.sort(dim=0).values[f : len(x_NB) - f].mean(dim=0)


class Median(Rule):
    """The step goes along the median of each entry. `malicious` serves nearest-neighbour mixing and the check of numbers."""

    name: ClassVar[str] = "median"

    def choose(self, cohort: Cohort) -> Choice:
        return median


class TrimmedMean(Rule):
    """The step goes along the mean of each entry without the `malicious` smallest and largest values."""

    name: ClassVar[str] = "trimmed_mean"

    def choose(self, cohort: Cohort) -> Choice:
        return lambda x_NB: trimmed_mean(x_NB, self.malicious)
