"""Statistics of paired differences: interval, p, power, equality, and bounds that hold at every look. Pure functions.

The one idea: whatever was compared, seeds, episodes or examples, is one list of differences, a number for each pair, and each
question has one function. scipy works the answers out; it is imported when the first function is called.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.protocol.errors import UserError

Floats = npt.NDArray[np.float64]

RESAMPLES = 9_999
EXACT = 16  # differences other than 0, at most, whose sign flips are all counted: 2^14 of them
AT_ONCE = 4_000_000  # numbers that a bootstrap or a permutation test has in memory at once
POWER = 0.8  # share of comparisons that find a difference of the size that is called findable
PRIOR = 1.0  # variance of the effect size (mean over standard deviation) in the mixture of `always`


def scipy_stats() -> Any:
    """The module scipy.stats. Raises UserError if scipy is not installed."""
    try:
        from scipy import stats
    except ModuleNotFoundError:
        raise UserError("comparing needs scipy, which is not installed: pip install 'shoal[compare]'") from None
    return stats


def interval(differences: Floats, rng: np.random.Generator, alpha: float = 0.05) -> tuple[float, float]:
    """The BCa bootstrap interval of the mean of differences [n], n >= 2 (Efron 1987, by scipy.stats.bootstrap).

    A bootstrap is too narrow for few differences: it divides by n where n - 1 is due, and has a normal's tails where t's are
    due. So the level is made what t's quantile asks for (Hesterberg 2015, "What teachers should know about the bootstrap",
    section 5.3: expanded percentiles): Phi(-t * sqrt(n / (n - 1))) at either end in place of alpha / 2.
    """
    n = len(differences)
    if np.ptp(differences) == 0:
        return float(differences[0]), float(differences[0])
    stats = scipy_stats()
    tail = stats.norm.cdf(-stats.t.isf(alpha / 2, n - 1) * math.sqrt(n / (n - 1)))
    for method in ("BCa", "percentile"):  # BCa is undefined if all resampled means lie on one side of the mean
        with np.errstate(all="ignore"):
            found = stats.bootstrap(
                (differences,),
                np.mean,
                confidence_level=1 - 2 * tail,
                n_resamples=RESAMPLES,
                method=method,
                batch=max(1, AT_ONCE // n),
                rng=rng,
            ).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            break
    return float(found.low), float(found.high)


def sign_flips(differences: Floats, rng: np.random.Generator, alternative: str = "two-sided") -> float:
    """The p of the sign-flip permutation test (Fisher 1935, by scipy.stats.permutation_test): how often differences [n] whose
    signs are random have a mean as far from 0. alternative: "two-sided", or "greater" for a mean above 0.

    It is exact for up to EXACT differences other than 0; else (b + 1) / (RESAMPLES + 1), where b of RESAMPLES random flips are
    as far. A difference of 0 has no sign to flip and is left out, which changes no p.
    """
    there = differences[differences != 0]
    if not len(there):
        return 1.0
    found = scipy_stats().permutation_test(
        (there,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**EXACT if len(there) <= EXACT else RESAMPLES,
        batch=max(1, AT_ONCE // len(there)),
        alternative=alternative,
        rng=rng,
    )
    return min(1.0, float(found.pvalue))


def equality(differences: Floats, margin: float, rng: np.random.Generator) -> float:
    """The p of two one-sided sign-flip tests (Schuirmann 1987): a small one shows that the mean of differences [n] lies within
    -margin and margin."""
    return max(sign_flips(margin + differences, rng, "greater"), sign_flips(margin - differences, rng, "greater"))


def holm(ps: Sequence[float]) -> list[float]:
    """The ps of several comparisons, adjusted so that each may be held against alpha (Holm 1979): the i-th smallest of k times
    k - i + 1, and no smaller than those before it."""
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, at in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, ps[at] * (len(ps) - rank)))
        adjusted[at] = largest
    return adjusted


def fewest(alpha: float, sides: int = 2) -> int:
    """The least number of differences whose sign flips can have a p of alpha or less: sides / 2^n."""
    return math.ceil(math.log2(sides / alpha))


def power(effect: float, spread: float, n: int, alpha: float = 0.05) -> float:
    """The share of comparisons over n pairs that find a true difference `effect`, if differences have the standard deviation
    `spread`: the power of the paired t test, two-sided (the sign-flip test has nearly the same)."""
    stats = scipy_stats()
    limit, shift = stats.t.isf(alpha / 2, n - 1), abs(effect) / spread * math.sqrt(n)
    above, below = stats.nct.sf(limit, n - 1, shift), stats.nct.cdf(-limit, n - 1, shift)
    if math.isnan(above):  # scipy's nct has no value for large shifts: there the normal is as good
        above = stats.norm.sf(limit - shift)
    return min(1.0, float(above) + (0.0 if math.isnan(below) else float(below)))


def findable(spread: float, n: int, alpha: float = 0.05, wanted: float = POWER) -> float:
    """The true difference that n pairs find with the power `wanted`."""
    low, high = 0.0, spread
    while power(high, spread, n, alpha) < wanted:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, spread, n, alpha) >= wanted else (middle, high)
    return high


def needed(effect: float, spread: float, alpha: float = 0.05, wanted: float = POWER) -> int:
    """The least number of pairs that find a true difference `effect` with the power `wanted`."""
    return _least(lambda n: power(effect, spread, n, alpha) >= wanted, fewest(alpha))


def needed_for_equality(margin: float, spread: float, alpha: float = 0.05, wanted: float = POWER) -> int:
    """The least number of pairs that show equality within `margin` with the power `wanted`, if there is no true difference:
    those whose two one-sided t tests, t_(1 - alpha) and t_((1 + wanted) / 2), fit into the margin (Chow and Liu 1992)."""
    stats = scipy_stats()

    def enough(n: int) -> bool:
        both = stats.t.isf(alpha, n - 1) + stats.t.isf((1 - wanted) / 2, n - 1)
        return bool(both * spread / math.sqrt(n) <= margin)

    return _least(enough, fewest(alpha, 1))


def _least(enough: Any, first: int) -> int:
    """The least n from `first` that is enough, where all larger ones are."""
    low, high = first - 1, first
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def always(differences: Floats, alpha: float = 0.05) -> tuple[float, float, float]:
    """(p, low, high) for the mean of differences [n], n >= 2, that hold at all n together, however often one looks: if there is
    no difference, the p is at any time at or below alpha in at most alpha of all comparisons.

    1 / p is the mixture of t likelihood ratios over a normal effect size of variance PRIOR, a nonnegative martingale under
    mean 0 and any standard deviation (Lai 1976; Wang and Ramdas 2025, "Anytime-valid t-tests and confidence sequences for
    Gaussian means with unknown variance"; the ratio itself in Goenen et al. 2005, "The Bayesian two-sample t test"):

        (1 + n g)^(-1/2) * ((1 + t^2 / v) / (1 + t^2 / (v (1 + n g))))^(n / 2),    v = n - 1, g = PRIOR

    The interval holds every mean whose p is above alpha; its ends are infinite while n is too small. Exact for normal
    differences, close for others.
    """
    n, mean, spread = len(differences), float(np.mean(differences)), float(np.std(differences, ddof=1))
    grown = 1 + n * PRIOR
    share = (math.sqrt(grown) / alpha) ** (2 / n)
    half = math.inf
    if share < grown:
        half = spread / math.sqrt(n) * math.sqrt((n - 1) * (share - 1) / (1 - share / grown))
    if spread == 0:
        return (1.0 if mean == 0 else min(1.0, grown ** (-(n - 1) / 2))), mean - half, mean + half
    squared = (mean / spread) ** 2 * n / (n - 1)
    log_ratio = -math.log(grown) / 2 + n / 2 * (math.log1p(squared) - math.log1p(squared / grown))
    return math.exp(-min(max(log_ratio, 0.0), 700.0)), mean - half, mean + half
