"""Partitions use every example once, and are what their papers say."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shoal import Federated
from shoal.envs.datasets import Examples
from shoal.envs.partition import (
    PARTITIONS,
    Parts,
    by_column,
    dirichlet,
    dirichlet_by_client,
    iid,
    pathological,
    quantity_skew,
    shards,
)
from shoal.envs.partition import _mixed as mixed
from shoal.envs.population import Population
from shoal.jobs.populations import populated
from shoal.protocol.errors import UserError

LABELS = np.random.Generator(np.random.Philox(3)).integers(0, 10, size=2000)


def sizes(parts: Parts) -> np.ndarray:
    return np.array([len(part) for part in parts])


def shares_by_class(labels: np.ndarray, parts: Parts) -> np.ndarray:
    """[clients, classes] counts."""
    return np.array([np.bincount(labels[part], minlength=labels.max() + 1) for part in parts])


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(PARTITIONS)),
    clients=st.integers(2, 20),
    each=st.integers(2, 9),
    classes=st.integers(1, 4),
    seed=st.integers(0, 2**40),
)
def test_every_example_has_exactly_one_owner_and_nobody_has_none(name, clients, each, classes, seed):
    labels = np.arange(clients * each * classes) % classes
    settings = {"classes": classes} if name == "pathological" else {}
    parts = PARTITIONS[name](labels, clients, seed=seed, **settings)
    assert len(parts) == clients
    assert sizes(parts).min() >= 1
    assert sorted(itertools.chain.from_iterable(part.tolist() for part in parts)) == list(range(len(labels)))


@pytest.mark.parametrize("name", sorted(PARTITIONS))
def test_a_seed_gives_one_partition_and_another_seed_another(name):
    once, again, other = (PARTITIONS[name](LABELS, 20, seed=seed) for seed in (7, 7, 8))
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(once, other, strict=True))


def test_iid_sizes_differ_by_at_most_one_and_classes_are_mixed():
    parts = iid(LABELS, 30, seed=0)
    assert set(sizes(parts)) == {66, 67}
    assert (np.count_nonzero(shares_by_class(LABELS, parts), axis=1) >= 9).all()


def test_shards_are_equal_and_hold_few_classes():
    balanced = np.arange(2000) % 10
    parts = shards(balanced, 50, seed=0)  # 100 shards of 20: no shard straddles two classes of 200
    assert set(sizes(parts)) == {40}
    assert np.count_nonzero(shares_by_class(balanced, parts), axis=1).max() == 2


def test_the_mean_dirichlet_share_is_even_and_its_variance_that_of_dirichlet():
    """A component of Dirichlet(alpha, ..., alpha) over n has mean 1/n, variance (n - 1) / (n^2 (n alpha + 1))."""
    n, alpha, labels = 10, 0.5, np.repeat(np.arange(400), 1000)
    shares = shares_by_class(labels, dirichlet(labels, n, seed=1, alpha=alpha)) / 1000
    assert np.allclose(shares.sum(axis=0), 1)
    assert shares.mean() == pytest.approx(1 / n)
    # 4,000 shares: the standard error of their variance is below 4 % of it; 15 % is four of those
    assert shares.var() == pytest.approx((n - 1) / (n**2 * (n * alpha + 1)), rel=0.15)


def test_a_larger_alpha_is_more_even():
    spread = [sizes(dirichlet(LABELS, 20, seed=0, alpha=alpha)).std() for alpha in (0.05, 1.0, 1000.0)]
    assert spread[0] > spread[1] > spread[2]


@pytest.mark.parametrize("partition", [dirichlet, quantity_skew])
def test_shares_are_equal_for_the_largest_alpha_there_is(partition):
    for alpha in (1e100, 1e308, np.finfo(np.float64).max):
        found = sizes(partition(LABELS, 40, seed=3, alpha=alpha))
        assert found.min() >= 40  # 50 of 2,000 each, or 5 of the 200 of each class, give or take one
        assert found.max() <= 60


def test_dirichlet_by_client_gives_equal_sizes_and_mixes_with_the_variance_of_dirichlet():
    """Of 10 equally frequent classes, a client's share of a class has mean 1/10 and variance 9 / (100 (10 alpha + 1)), as far
    as classes last: here 1,000 clients of 20 draw from 200,000 examples."""
    labels, alpha = np.arange(200_000) % 10, 0.3
    left, rng = np.bincount(labels), np.random.Generator(np.random.Philox(1))
    found = np.array([mixed(20, rng.dirichlet(np.full(10, alpha)), left, rng) for _ in range(1000)]) / 20
    expected = 9 / (100 * (10 * alpha + 1))
    drawn = (0.1 * 0.9 - expected) / 20  # and of 20 draws from such a mix, E[q (1 - q)] / 20 more
    assert found.mean() == pytest.approx(0.1)
    assert found.var() == pytest.approx(expected + drawn, rel=0.1)
    parts = dirichlet_by_client(LABELS, 33, seed=0, alpha=0.1)
    assert set(sizes(parts)) == {60, 61}
    assert np.median(np.count_nonzero(shares_by_class(LABELS, parts) > 3, axis=1)) <= 3
    even = shares_by_class(LABELS, dirichlet_by_client(LABELS, 10, seed=0, alpha=1e308))
    assert (np.abs(even / 200 - np.bincount(LABELS) / 2000) < 0.12).all()


@pytest.mark.parametrize("alpha", [1e-300, 1e-9, 0.01])
def test_a_class_that_is_used_up_is_made_up_for_by_others(alpha):
    labels = np.repeat([0, 1, 2], [1, 10, 989])
    parts = dirichlet_by_client(labels, 10, seed=2, alpha=alpha)
    assert set(sizes(parts)) == {100}
    assert shares_by_class(labels, parts).sum(axis=0).tolist() == [1, 10, 989]


def test_a_column_of_names_gives_each_its_own_examples():
    names, parts = by_column(np.array(["b", "a", "b", "c", "a", "b"]))
    assert (names, [part.tolist() for part in parts]) == (["a", "b", "c"], [[1, 4], [0, 2, 5], [3]])
    names, parts = by_column(np.array([7, 7, -2]))
    assert (names, [part.tolist() for part in parts]) == ([-2, 7], [[2], [0, 1]])
    assert by_column(np.array(["x", 3, "x"], dtype=object))[0] == ["3", "x"]
    for odd, says in (
        (np.array(["a", None], dtype=object), "1 of 2 examples have no client"),
        (np.array([1.0, np.nan]), "1 of 2 examples have no client"),
        (np.zeros((2, 2)), r"clients' names are float64\[2, 2\]"),
    ):
        with pytest.raises(UserError, match=says):
            by_column(odd)


@pytest.mark.parametrize("alpha", [1e-9, 0.01, 0.5])
@pytest.mark.parametrize("partition", [dirichlet, quantity_skew])
def test_everybody_has_the_least_number_even_where_the_draw_gave_nothing(partition, alpha):
    parts = partition(LABELS, 190, seed=0, alpha=alpha, least=10)
    assert sizes(parts).min() == 10
    assert len(np.unique(np.concatenate(parts))) == len(LABELS)


def test_filling_up_moves_no_more_than_is_missing():
    bare, filled = (dirichlet(LABELS, 20, seed=0, alpha=0.1, least=least) for least in (1, 60))
    assert sizes(bare).min() > 1  # or the first was filled up too, perhaps with other examples
    missing = np.maximum(60 - sizes(bare), 0).sum()
    moved = sum(len(np.setdiff1d(after, before)) for before, after in zip(bare, filled, strict=True))
    assert moved == missing > 0


@pytest.mark.parametrize("classes", [1, 2, 3, 10])
def test_pathological_clients_have_exactly_k_classes_and_classes_are_shared_evenly(classes):
    counts = shares_by_class(LABELS, pathological(LABELS, 25, seed=0, classes=classes))
    assert (np.count_nonzero(counts, axis=1) == classes).all()
    owners = np.count_nonzero(counts, axis=0)
    assert owners.max() - owners.min() <= 1
    assert all(np.ptp(column[column > 0]) <= 1 for column in counts.T)


def test_quantity_skew_changes_sizes_and_not_classes():
    parts = quantity_skew(np.arange(20_000) % 4, 10, seed=0, alpha=0.5)
    assert sizes(parts).max() > 5 * sizes(parts).min()
    largest = max(parts, key=len) % 4
    assert np.bincount(largest) / len(largest) == pytest.approx([0.25] * 4, abs=0.03)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: iid(LABELS, 2001, seed=0), "clients=2001: 2000 examples are too few for 1 each; use at most 2000"),
        (lambda: iid(LABELS, 0, seed=0), "clients=0: must be a number from 1"),
        (lambda: shards(LABELS, 1001, seed=0), "clients=1001: 2000 examples are too few for 2 each; use at most 1000"),
        (lambda: dirichlet(LABELS, 9, seed=0, alpha=0.0), "alpha=0.0: must be a number above 0"),
        (lambda: dirichlet(LABELS, 9, seed=0, alpha=float("nan")), "alpha=nan: must be a number above 0"),
        (lambda: dirichlet(LABELS, 9, seed=0, least=0), "least=0: must be a number from 1"),
        (lambda: shards(LABELS, 9, seed=0, per_client=0), "per_client=0: must be a number from 1"),
        (lambda: pathological(LABELS, 9, seed=0, classes=0), "classes=0: must be a number from 1"),
        (lambda: quantity_skew(LABELS, 9, seed=0, alpha=0.0), "alpha=0.0: must be a number above 0"),
        (lambda: pathological(LABELS, 4, seed=0, classes=2), "classes=2: 4 clients can divide 10 classes only with 3 to 10"),
        (lambda: pathological(LABELS, 4, seed=0, classes=11), "classes=11: 4 clients can divide 10 classes only with 3 to 10"),
        (lambda: pathological(np.arange(30) % 3, 15, seed=0, classes=2), "no error"),
        (lambda: pathological(np.array([0, 1] * 20 + [2]), 9, seed=0, classes=1), "class 2 has 1 examples for 3 clients"),
    ],
)
def test_what_cannot_be_divided_is_refused_in_one_line(call, says):
    if says == "no error":
        assert len(call()) == 15
        return
    with pytest.raises(UserError) as refused:
        call()
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_population_gives_each_client_its_part_as_a_view_of_one_array():
    x = np.arange(2000, dtype=np.float32)[:, None]
    parts = dirichlet(LABELS, 30, seed=0)
    population = Population.divided(Examples(x, LABELS), parts)
    assert population.clients == 30
    for client, part in enumerate(parts):
        its = population.examples(client)
        assert np.array_equal(its.x[:, 0], part)
        assert np.array_equal(its.y, LABELS[part])
    first, last = population.examples(0), population.examples(29)
    assert first.x.base is last.x.base is not None


@pytest.mark.parametrize("client", [-1, 30])
def test_a_client_that_does_not_exist_is_refused(client):
    population = Population.divided(Examples(LABELS[:, None], LABELS), iid(LABELS, 30, seed=0))
    with pytest.raises(IndexError, match=f"client {client} is not one of the 30"):
        population.examples(client)


def test_a_population_without_examples_for_someone_is_refused():
    with pytest.raises(UserError, match="1 of 2 clients have no examples \\(1\\); 9 examples are divided: use fewer clients"):
        Population.divided(Examples(LABELS[:, None], LABELS), [np.arange(9), np.arange(0)])


def test_a_population_may_be_a_function_of_the_client():
    population = Population(10**6, lambda client: Examples(np.full((2, 3), client, dtype=np.float64), np.array([0, 1])))
    its = population.examples(999_999)
    assert its.x.dtype == np.float32
    assert (its.x == 999_999).all()


def test_no_client_is_favoured():
    """Mean sizes of exchangeable clients over many draws agree within five standard errors of their own."""
    many, few = np.arange(600) % 60, np.arange(33) % 3
    for partition, labels, clients, its in (
        (dirichlet, many, 15, {}),
        (dirichlet, few, 15, {"alpha": 0.1, "least": 2}),
        (quantity_skew, few, 15, {"alpha": 0.3}),
        (dirichlet_by_client, few, 15, {"alpha": 0.3}),
        (pathological, many[:570], 12, {"classes": 20}),
        (pathological, many[:560], 11, {"classes": 6}),
        (iid, many[:52], 9, {}),
    ):
        found = np.array([sizes(partition(labels, clients, seed=seed, **its)) for seed in range(400)])
        error = found.std(axis=0) / np.sqrt(len(found)) + 1e-9
        assert (np.abs(found.mean(axis=0) - len(labels) / clients) < 5 * error).all()


def split_of(y: np.ndarray, partition: str = "auto", clients: int = 6, alpha: float = 0.5) -> Population:
    more = {"held_out": 0.25, "shards_per_client": 2, "classes": 2, "alpha": alpha}
    x = np.zeros((len(y), 1), np.float32)
    return populated((x, y), SimpleNamespace(partition=partition, clients=clients, **more), 0)


def mine(logits, y):
    return nn.functional.cross_entropy(logits, y)


REAL = np.random.Generator(np.random.Philox(5)).normal(size=160)


def test_the_default_partition_follows_the_labels():
    for y in (REAL, REAL.reshape(80, 2), np.arange(240).reshape(80, 3)):
        found = split_of(y)
        assert np.ptp([len(found.examples(client)) for client in range(6)]) <= 1
        (note,) = found.notes
        assert "are no classes" in note
        assert "partition=iid" in note
    for y in (LABELS, LABELS[:, None], LABELS > 4, (LABELS > 4).astype(np.float64)):
        found = split_of(y)
        assert np.ptp([len(found.examples(client)) for client in range(6)]) > 50
        assert not found.notes
    with pytest.raises(UserError, match=r"alpha=0.1: has no effect, as the labels float32\[120\] are no classes"):
        split_of(REAL, alpha=0.1)


@pytest.mark.parametrize(
    ("loss", "even"), [(nn.functional.mse_loss, True), (nn.SmoothL1Loss(), True), (None, False), (mine, False)]
)
def test_whole_numbers_are_no_classes_to_a_loss_of_torchs_that_is_not_over_classes(loss, even):
    x = np.zeros((len(LABELS), 1), np.float32)
    job = Federated(lambda: nn.Linear(1, 10), (x, LABELS), loss, clients=6, cohort=2)
    found = job.problem.population(job.method, 0)
    assert (np.ptp([len(found.examples(client)) for client in range(6)]) <= 1) == even
    assert any("are no classes to this loss" in note for note in found.notes) == even


def test_zeros_and_ones_are_classes_to_any_loss():
    x, y = np.zeros((len(LABELS), 1), np.float32), (LABELS > 4).astype(np.float32)
    job = Federated(lambda: nn.Linear(1, 1), (x, y), nn.functional.binary_cross_entropy_with_logits, clients=6, cohort=2)
    found = job.problem.population(job.method, 0)
    assert np.ptp([len(found.examples(client)) for client in range(6)]) > 50
    assert not found.notes


def test_a_partition_that_needs_classes_refuses_other_labels():
    for name in ("dirichlet", "dirichlet_by_client", "pathological"):
        for y in (REAL, REAL.reshape(80, 2), np.arange(240).reshape(80, 3)):
            with pytest.raises(UserError, match=rf"partition={name}: needs classes, whole numbers \[n\]; the labels are"):
                split_of(y, name)
    with pytest.raises(UserError, match=r"partition=shards: labels \[60, 2\] have no order"):
        split_of(REAL.reshape(80, 2), "shards")
    for y in (REAL, REAL[:, None]):
        assert sum(len(split_of(y, "shards").examples(client)) for client in range(6)) == 120
