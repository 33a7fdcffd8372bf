"""Federated analytics gives what numpy gives on all clients' data at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from torch import nn

from shoal import Federated
from shoal.actors.workers.tallying import Tallying
from shoal.aggregators.tallies import DIGITS, Tallies, tally_layout
from shoal.envs.datasets import Examples
from shoal.envs.population import Population
from shoal.jobs.job import Job
from shoal.protocol.errors import UserError
from shoal.protocol.exact import PartialSum
from shoal.protocol.layout import Bundle
from shoal.protocol.ordering import floats_of, keys_of
from shoal.protocol.work import Contribution, Task, Work

RNG = np.random.default_rng(1)
DATA = [
    np.round(RNG.normal(size=(int(n), 3)) * 10.0 ** RNG.integers(-3, 4), 3).astype(np.float32) for n in RNG.integers(1, 30, 12)
]
ALL = np.concatenate(DATA)


def asked(query: str, steps: int = 1, summed: bool = False, percentiles: Sequence[int] = (), **how: float) -> Bundle:
    """The answer of all clients in a plain loop."""
    population = Population(len(DATA), lambda client: Examples(DATA[client], np.zeros(len(DATA[client]), np.int64)))
    worker = Tallying(population, query, "x", how.get("low", -1), how.get("high", 1), 8)
    its = Tallies(query, tally_layout(query, 3, 8, len(percentiles)), percentiles, len(DATA))
    for step in range(steps):
        total = PartialSum(its.weights().layout)
        for client in np.random.default_rng(step).permutation(len(DATA)):
            work = worker.run(its.weights(), int(client), Task(step, int(client), (int(client),)))
            assert work.bundle is not None
            total.add(work.bundle, 1.0)
            if not summed:
                its.fold(Contribution(Task(step, int(client), (int(client),)), step, 0, work))
        if summed:
            whole = Task(step, 0, tuple(range(len(DATA))))
            its.fold(Contribution(whole, step, 0, Work(total.bundle(), total.weight), summed=True))
        its.step()
    return its.weights()


@pytest.mark.parametrize("summed", [False, True])
def test_sums_are_those_of_all_rows(summed: bool):
    answer = asked("sum", summed=summed)
    assert answer["count"][0] == len(ALL)
    np.testing.assert_allclose(answer["total"], ALL.astype(np.float64).sum(0), atol=len(DATA) * 2.0**-33, rtol=0)


def test_a_histogram_counts_every_number_once_and_those_outside_at_its_ends():
    answer = asked("histogram")["histogram"]
    for column in range(3):
        inside = np.histogram(ALL[(ALL[:, column] < 1), column], bins=8, range=(-1, 1))[0]
        assert answer[column, 1:-1].tolist() == inside.tolist()
        assert answer[column, 0] == (ALL[:, column] < -1).sum()
        assert answer[column, -1] == (ALL[:, column] >= 1).sum()


@pytest.mark.parametrize("summed", [False, True])
def test_quantiles_are_numpys_for_all_rows_to_the_last_bit(summed: bool):
    percentiles = (0, 1, 25, 50, 77, 99, 100)
    answer = asked("quantiles", DIGITS, summed, percentiles)["quantiles"]
    expected = np.quantile(ALL, np.array(percentiles) / 100, axis=0, method="inverted_cdf").T
    assert answer.astype(np.float32).tolist() == expected.tolist()


def test_the_error_of_a_quantile_bounds_what_it_may_still_be_and_ends_at_0():
    population = Population(len(DATA), lambda client: Examples(DATA[client], np.zeros(len(DATA[client]), np.int64)))
    worker, its = (
        Tallying(population, "quantiles", "x", 0, 1, 1),
        Tallies("quantiles", tally_layout("quantiles", 3, 1, 2), (25, 90), 12),
    )
    true, errors = np.quantile(ALL, (0.25, 0.9), axis=0, method="inverted_cdf").T, list[float]()
    for step in range(DIGITS):
        for client in range(len(DATA)):
            task = Task(step, client, (client,))
            its.fold(Contribution(task, step, 0, worker.run(its.weights(), client, task)))
        errors.append(its.step().metrics["quantile_error"])
        keys = its.weights()["prefix"].astype(np.uint64) << np.uint64(8 * (DIGITS - 1 - step))
        for _ in range(50):  # any numbers that begin with the bytes found so far
            tails = RNG.integers(0, 1 << 8 * (DIGITS - 1 - step), (2, *keys.shape), dtype=np.uint64)
            low, high = (floats_of((keys | tail).astype(np.uint32)).astype(float) for tail in tails)
            assert np.abs(high - low).max() <= errors[-1]
            assert np.abs(true - low).max() <= errors[-1]
    assert errors[0] > 100 * errors[1] > 10_000 * errors[2] > errors[3] == 0


def test_keys_are_in_the_order_of_the_floats():
    x = np.concatenate([RNG.normal(size=1000), [0.0, -0.0, np.finfo(np.float32).max, -1e30, 1e-45, -1e-45]]).astype(np.float32)
    assert np.array_equal(np.argsort(keys_of(x), kind="stable"), np.argsort(x, kind="stable"))
    assert np.array_equal(floats_of(keys_of(x)), x)


def test_quantiles_of_clients_that_differ_between_versions_are_refused():
    its = Tallies("quantiles", tally_layout("quantiles", 1, 8, 1), (50,), 2)
    for count in (5, 4):
        tally = Bundle.zeros(its.weights().layout)
        tally["count"][...] = count
        tally["counts"][0, 0, 7] = count
        its.fold(Contribution(Task(0, 0, (0,)), 0, 0, Work(tally, 1.0)))
        if count == 5:
            its.step()
    with pytest.raises(UserError, match="5 rows in version 1 and 4 in version 2"):
        its.step()


def job(**settings: object) -> Job:
    x = np.arange(40, dtype=np.float32).reshape(20, 2)
    return Federated(
        lambda: nn.Linear(2, 2), (x, np.arange(20) % 2), method="analytics", clients=4, partition="iid", **settings
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"query": "median"}, "query=median: allowed is one of sum, histogram, quantiles"),
        ({"bins": 5}, "bins is a setting of query=histogram"),
        ({"query": "histogram", "low": 2.0}, "high=1: must be above low=2"),
        ({"query": "quantiles", "percentiles": (50, 101)}, "percentiles=50,101"),
        ({"query": "quantiles", "cohort": 2}, "must ask the same clients"),
        ({"cohort": 5}, "cohort=5: allowed is from 0 to clients=4"),
        ({"compress": "int8"}, "answers would not be exact"),
        ({"norm_factor": 3.0}, "answers would not be exact"),
        ({"norm_bound": 3.0}, "it would leave out large clients"),
        ({"lr": 0.1}, "lr is a setting of"),
    ],
)
def test_questions_without_an_exact_answer_are_refused(settings: dict[str, object], said: str):
    with pytest.raises(UserError, match=said):
        job(**settings)


def test_a_client_with_a_nan_says_so():
    population = Population(1, lambda client: Examples(np.full((2, 2), np.nan, np.float32), np.zeros(2, np.int64)))
    worker = Tallying(population, "sum", "x", 0, 1, 8)
    with pytest.raises(ValueError, match="client 0: x holds NaN"):
        worker.run(Bundle.zeros(tally_layout("sum", 2, 8, 0)), 0, Task(0, 0, (0,)))
