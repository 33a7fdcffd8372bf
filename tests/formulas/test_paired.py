"""The statistics of `shoal compare`, against their definitions and against numbers that others published."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats

from shoal.benchmarks import comparing
from shoal.runs import paired
from shoal.runs.paired import Floats

DARWIN = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48], dtype=np.float64)
"""Heights of crossed less self-fertilised maize, in eighths of an inch (Fisher 1935, The Design of Experiments, chapter 3)."""


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def flipped(differences: Floats) -> float:
    """The definition: the share of all sign flips whose sum is as far from 0."""
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=len(differences))]
    return float(np.mean(np.array(sums) >= abs(differences.sum()) - 1e-9))


def test_sign_flips_of_darwin_s_maize_are_those_that_fisher_counted() -> None:
    # "in 863 cases out of these 32,768 the total deviation will have a positive value as great or greater"
    assert paired.sign_flips(DARWIN, rng(), "greater") == pytest.approx(863 / 2**15)
    assert paired.sign_flips(DARWIN, rng()) == pytest.approx(2 * 863 / 2**15)


@pytest.mark.parametrize("n", [2, 5, 9])
def test_few_differences_are_flipped_in_all_ways(n: int) -> None:
    differences = rng(n).normal(0.4, size=n)
    assert paired.sign_flips(differences, rng()) == pytest.approx(flipped(differences))


def test_many_differences_are_flipped_at_random_and_near_the_truth() -> None:
    differences = rng(3).normal(0.3, size=40)
    t = stats.ttest_1samp(differences, 0).pvalue
    assert paired.sign_flips(differences, rng()) == pytest.approx(t, abs=0.02)


def test_hits_and_misses_are_mcnemar_s_exact_test() -> None:
    differences = np.array([1.0] * 9 + [-1.0] * 2 + [0.0] * 500)
    assert paired.sign_flips(differences, rng()) == pytest.approx(stats.binomtest(2, 11).pvalue)


def test_differences_that_are_all_zero_are_no_difference() -> None:
    assert paired.sign_flips(np.zeros(9), rng()) == 1.0
    assert paired.interval(np.zeros(9), rng()) == (0.0, 0.0)
    assert paired.always(np.zeros(9)) == (1.0, 0.0, 0.0)


def bca(differences: Floats, tail: float, generator: np.random.Generator) -> list[float]:
    """Efron 1987, from the definition: the quantiles of resampled means, moved by bias z0 and acceleration a."""
    n, mean = len(differences), differences.mean()
    means = np.sort(differences[generator.integers(n, size=(40_000, n))].mean(1))
    z0 = stats.norm.ppf(((means < mean).mean() + (means <= mean).mean()) / 2)
    without = (differences.sum() - differences) / (n - 1)
    apart = without.mean() - without
    a = (apart**3).sum() / (6 * (apart**2).sum() ** 1.5)
    z = [z0 + stats.norm.ppf(level) for level in (tail, 1 - tail)]
    return [float(np.quantile(means, stats.norm.cdf(z0 + each / (1 - a * each)))) for each in z]


@pytest.mark.parametrize("differences", [DARWIN, rng(1).exponential(size=25), rng(2).normal(size=200)])
def test_the_interval_is_efron_s_at_the_level_that_few_differences_ask_for(differences: Floats) -> None:
    n = len(differences)
    tail = stats.norm.cdf(-stats.t.isf(0.025, n - 1) * math.sqrt(n / (n - 1)))
    near = 0.2 * differences.std() / math.sqrt(n)
    assert paired.interval(differences, rng()) == pytest.approx(bca(differences, float(tail), rng(9)), abs=near)


def test_the_interval_of_normal_differences_is_nearly_t_s() -> None:
    differences = rng(4).normal(size=400)
    t = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert paired.interval(differences, rng()) == pytest.approx([t.low, t.high], abs=0.01)


def test_the_interval_moves_and_grows_with_the_differences() -> None:
    low, high = paired.interval(DARWIN, rng())
    assert paired.interval(2 * DARWIN + 7, rng()) == pytest.approx([2 * low + 7, 2 * high + 7])


def test_holm_s_adjustment_is_the_published_example() -> None:
    # Holm's procedure in Wikipedia, "Holm-Bonferroni method": 0.01, 0.04, 0.03, 0.005 at alpha 0.05
    assert paired.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert paired.holm([0.7, 0.6]) == [1.0, 1.0]
    assert paired.holm([0.03]) == [0.03]


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_the_number_needed_is_that_of_the_paired_t_test(effect: float, pairs: int) -> None:
    assert paired.needed(effect, 1.0) == pairs  # G*Power 3.1, two-tailed, alpha 0.05, power 0.8


def test_power_is_that_of_g_power_and_scales_with_the_spread() -> None:
    assert paired.power(0.5, 1.0, 34) == pytest.approx(0.8077775, abs=1e-6)
    assert paired.power(-1.5, 3.0, 34) == pytest.approx(0.8077775, abs=1e-6)
    assert paired.power(1e9, 1.0, 10) == 1.0


@pytest.mark.parametrize("n", [6, 30, 5000])
def test_what_is_findable_needs_as_many_as_there_are(n: int) -> None:
    found = paired.findable(2.0, n)
    assert paired.power(found, 2.0, n) == pytest.approx(0.8)
    assert paired.needed(1.0001 * found, 2.0) == n


def test_equality_needs_what_two_one_sided_tests_need() -> None:
    n = paired.needed_for_equality(0.3, 1.0)
    z = (stats.norm.isf(0.05) + stats.norm.isf(0.1)) ** 2 / 0.3**2
    assert z == pytest.approx(95.15, abs=0.05)  # Lakens 2017, powerTOSTpaired(alpha = 0.05, power = 0.8, dz = 0.3)
    assert 96 <= n <= 99  # by t in place of z


def test_equality_is_the_larger_of_two_one_sided_tests() -> None:
    differences = rng(5).normal(0.1, size=12)
    both = [flipped_above(1 + differences), flipped_above(1 - differences)]
    assert paired.equality(differences, 1.0, rng()) == pytest.approx(max(both))
    assert paired.equality(differences, 0.01, rng()) > 0.05


def flipped_above(differences: Floats) -> float:
    sums = [np.dot(signs, differences) for signs in itertools.product((-1, 1), repeat=len(differences))]
    return float(np.mean(np.array(sums) >= differences.sum() - 1e-9))


def test_the_fewest_pairs_are_those_whose_best_p_is_small_enough() -> None:
    for alpha in (0.05, 0.05 / 3, 0.01):
        n = paired.fewest(alpha)
        assert 2 / 2**n <= alpha < 2 / 2 ** (n - 1)
        assert paired.sign_flips(np.arange(1.0, n + 1), rng()) == 2 / 2**n


@pytest.mark.parametrize(("mean", "n"), [(0.0, 7), (0.7, 7), (0.4, 40)])
def test_the_bound_at_every_look_is_the_mixture_over_effect_sizes(mean: float, n: int) -> None:
    differences = rng(6).normal(mean, size=n)
    t = differences.mean() / stats.sem(differences)

    def part(effect: float) -> float:
        return float(stats.nct.pdf(t, n - 1, effect * math.sqrt(n)) * stats.norm.pdf(effect))

    mixture = integrate.quad(part, -4, 4, limit=200)[0]
    ratio = mixture / stats.t.pdf(t, n - 1)
    assert paired.always(differences)[0] == pytest.approx(min(1.0, 1 / ratio), rel=1e-4)


def test_the_interval_at_every_look_holds_the_means_that_are_not_refuted() -> None:
    differences = rng(7).normal(0.3, size=20)
    _, low, high = paired.always(differences)
    assert paired.always(differences - low)[0] == pytest.approx(0.05)
    assert paired.always(differences - high)[0] == pytest.approx(0.05)
    assert high - low > np.ptp(stats.t.interval(0.95, 19, differences.mean(), stats.sem(differences)))
    assert paired.always(differences[:3])[1:] == (-math.inf, math.inf)


def test_looking_often_costs_the_bound_nothing_and_the_plain_test_much() -> None:
    bound = plain = 0
    for seed in range(200):
        differences = rng(seed).normal(size=60)
        bound += any(paired.always(differences[:n])[0] <= 0.05 for n in range(6, 61, 3))
        plain += any(stats.ttest_1samp(differences[:n], 0).pvalue <= 0.05 for n in range(6, 61, 6))
    assert bound / 200 <= 0.05
    assert plain / 200 > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(comparing.KINDS))
def test_what_is_said_of_made_up_differences_is_true_as_often_as_it_says(kind: str) -> None:
    draw, pairs = comparing.KINDS[kind]
    found = comparing.measured(kind, draw, pairs, 200)  # 1,000 in `shoal bench compare`
    assert found["false"] <= 0.08
    assert 0.91 <= found["covered"] <= 0.99
    assert found["power"] == pytest.approx(found["predicted"], abs=0.08)
    assert comparing.peeked(draw, 60, 200) <= 0.06
