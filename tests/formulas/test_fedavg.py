"""FedAvg against its definition in float64, and what it does with all that is not a trainable float32."""

from __future__ import annotations

import math
import random
from functools import partial

import numpy as np
import pytest
from federated_deltas import LAYOUT, TRAINABLE, contribution, random_bundle, vector
from hypothesis import given
from hypothesis import strategies as st
from servers import FedAdagradServer, FedAdamServer, FedAvgMServer, FedYogiServer

from shoal.aggregators.fedavg import FedAvgServer
from shoal.aggregators.fedbuff import FedBuffServer
from shoal.nets.updates import Adam
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.exact import PartialSum, floats
from shoal.protocol.grid import LIMIT, PLAIN_LIMIT
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Task, Work

ROUNDING = 2.0**-23  # of a float32 that is about 1: a weight moves by a number of that size and is rounded once
DELTAS = [(random_bundle(10 + i, size=0.1), weight) for i, weight in enumerate([10.0, 3.0, 250.0, 1.0])]


def folded(aggregator: FedAvgServer, deltas: list[tuple[Bundle, float]]) -> FedAvgServer:
    for bundle, weight in deltas:
        aggregator.fold(contribution(bundle, weight))
    return aggregator


def mean(dtype: str) -> np.ndarray:
    total = sum(weight * floats(bundle.vector(dtype), dtype).astype(np.float64) for bundle, weight in DELTAS)
    return total / 264.0


@pytest.mark.parametrize("deterministic", [True, False])
def test_weights_move_by_the_mean_of_deltas_by_weight(deterministic):
    start = random_bundle(1)
    aggregator = folded(FedAvgServer(start, TRAINABLE, deterministic=deterministic), DELTAS)
    metrics = aggregator.step().metrics
    np.testing.assert_allclose(aggregator.weights().vector(), start.vector() + mean("f4"), rtol=0, atol=ROUNDING)
    assert metrics["examples"] == 264.0
    assert metrics["update_norm"] == pytest.approx(np.linalg.norm(mean("f4")[:TRAINABLE]), rel=1e-6)


def test_a_single_contribution_moves_the_weights_by_its_delta_whatever_its_weight():
    for weight in (1.0, 7.0, 600.0, 0.3):
        aggregator = folded(FedAvgServer(vector([1.0, -2.0, 0.0])), [(vector([0.5, 0.25, -1.0]), weight)])
        aggregator.step()
        assert aggregator.weights()["w"].tolist() == pytest.approx([1.5, -1.75, -1.0], rel=1e-6)


def test_the_server_learning_rate_scales_trainable_entries_and_no_others():
    start = random_bundle(1)
    aggregator = folded(FedAvgServer(start, TRAINABLE, lr=0.25), DELTAS)
    metrics = aggregator.step().metrics
    after, plain = aggregator.weights(), mean("f4")
    np.testing.assert_allclose(
        after.vector()[:TRAINABLE], start.vector()[:TRAINABLE] + 0.25 * plain[:TRAINABLE], rtol=0, atol=ROUNDING
    )
    np.testing.assert_allclose(after["norm.mean"], start["norm.mean"] + plain[TRAINABLE:], rtol=0, atol=ROUNDING)
    assert metrics["update_norm"] == pytest.approx(0.25 * np.linalg.norm(plain[:TRAINABLE]), rel=1e-6)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize(("dtype", "rounding"), [("f2", 2.0**-10), ("bf16", 2.0**-7), ("f8", 1e-8)])
def test_other_floats_move_by_the_plain_mean_rounded_to_their_dtype(dtype, rounding, deterministic):
    start = random_bundle(1)
    aggregator = folded(FedAvgServer(start, TRAINABLE, lr=0.25, deterministic=deterministic), DELTAS)
    aggregator.step()
    before, after = floats(start.vector(dtype), dtype), floats(aggregator.weights().vector(dtype), dtype)
    np.testing.assert_allclose(after, before + mean(dtype), rtol=rounding, atol=1e-9)
    assert (after != before).all()


@pytest.mark.parametrize("deterministic", [True, False])
def test_counters_move_by_the_mean_rounded_to_a_whole_number(deterministic):
    start = Bundle.pack({"count": np.array([100, 100, -5])})
    deltas = [(Bundle.pack({"count": np.array(row)}), weight) for row, weight in (([4, 2, -3], 3.0), ([8, 1, -6], 1.0))]
    aggregator = folded(FedAvgServer(start, deterministic=deterministic), deltas)
    aggregator.step()  # by 20 / 4, 7 / 4 and -15 / 4
    assert aggregator.weights()["count"].tolist() == [105, 102, -9]


VOTES = [([True, True, False, False], [255, 3, 7], [-128, 5], 3.0), ([True, False, True, False], [0, 3, 8], [127, 6], 1.0)]


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("kind", [FedAvgServer, FedBuffServer, partial(FedBuffServer, normalise=False, exponent=3.0)])
def test_booleans_become_the_majority_and_bytes_the_rounded_mean(kind, deterministic):
    start = {"seen": [False, False, False, True], "level": [9, 9, 9], "shift": [1, 1]}
    dtypes = {"seen": np.bool_, "level": np.uint8, "shift": np.int8}
    packed = [Bundle.pack({n: np.array(v, dtypes[n]) for n, v in zip(start, row, strict=False)}) for row in VOTES]
    aggregator = kind(Bundle.pack({n: np.array(v, dtypes[n]) for n, v in start.items()}), deterministic=deterministic)
    for bundle, row in zip(packed, VOTES, strict=True):
        aggregator.fold(contribution(bundle, row[-1], lag=2))
    aggregator.step()
    weights = aggregator.weights()
    assert weights["seen"].tolist() == [True, True, False, False]
    assert weights["level"].tolist() == [191, 3, 7]  # 191.25, 3, 7.25
    assert weights["shift"].tolist() == [-64, 5]  # -64.25, 5.25
    for bundle in packed:
        aggregator.fold(contribution(bundle, 2.0))
    aggregator.step()  # ties
    assert aggregator.weights()["seen"].tolist() == [True, True, False, False]


@given(st.permutations(range(12)), st.integers(0, 2**32))
def test_neither_order_nor_who_summed_shows_in_the_weights(order, seed):
    deltas = [(random_bundle(i), 1.0 + i / 7) for i in range(12)]
    one, other = FedAvgServer(random_bundle(99), TRAINABLE), FedAvgServer(random_bundle(99), TRAINABLE)
    folded(one, deltas).step()
    cuts = sorted(random.Random(seed).sample(range(13), 4))
    for first, last in zip([0, *cuts], [*cuts, 12], strict=True):
        part = PartialSum(LAYOUT)
        for i in order[first:last]:
            part.add(*deltas[i])
        if last - first == 1:
            other.fold(contribution(*deltas[order[first]]))
        elif last > first:
            other.fold(contribution(part.bundle(), part.weight, summed=True))
    other.step()
    assert other.weights().sha256() == one.weights().sha256()


def test_a_step_starts_from_nothing():
    once, twice = FedAvgServer(vector([0.0])), FedAvgServer(vector([0.0]))
    folded(twice, [(vector([5.0]), 9.0)]).step()
    folded(twice, [(vector([1.0]), 2.0)]).step()
    folded(once, [(vector([1.0]), 2.0)]).step()
    assert twice.weights()["w"].tolist() == [6.0]
    assert once.weights()["w"].tolist() == [1.0]


def test_a_step_of_nothing_is_an_error_of_ours():
    aggregator = FedAvgServer(vector([1.0]))
    with pytest.raises(RuntimeError, match="nothing folded"):
        aggregator.step()
    folded(aggregator, [(vector([1.0]), 1.0)]).step()
    with pytest.raises(RuntimeError, match="nothing folded"):
        aggregator.step()


@pytest.mark.parametrize("deterministic", [True, False])
def test_what_is_refused_leaves_no_trace(deterministic):
    clean, tried = (FedAvgServer(vector([1.0, 1.0]), deterministic=deterministic) for _ in range(2))
    for bad in (
        contribution(vector([1.0, math.nan])),
        contribution(vector([math.inf, 1.0])),
        contribution(vector([1.0])),
        contribution(vector([1.0, 1.0]), weight=math.nan),
        contribution(vector([1.0, 1.0]), weight=0.0),
        contribution(vector([1.0, 1.0]), summed=True),
    ):
        with pytest.raises(ProtocolError):
            tried.fold(bad)
    for aggregator in (clean, tried):
        folded(aggregator, [(vector([0.1, 0.2]), 3.0)]).step()
    assert tried.weights().sha256() == clean.weights().sha256()


def test_weights_given_out_do_not_change_with_later_steps_nor_the_ones_taken_in():
    start = vector([1.0])
    aggregator = FedAvgServer(start)
    before = aggregator.weights()
    folded(aggregator, [(vector([1.0]), 1.0)]).step()
    assert (start["w"][0], before["w"][0], aggregator.weights()["w"][0]) == (1.0, 1.0, 2.0)


def test_a_contribution_may_be_overwritten_once_it_is_folded():
    aggregator, delta = FedAvgServer(vector([0.0])), vector([1.0])
    aggregator.fold(contribution(delta))
    delta["w"][:] = 5.0
    aggregator.step()
    assert aggregator.weights()["w"].tolist() == [1.0]


def test_a_contribution_in_read_only_memory_is_fine():
    for deterministic in (True, False):
        aggregator = FedAvgServer(vector([0.0]), deterministic=deterministic)
        delta = vector([1.0])
        aggregator.fold(contribution(Bundle.of_buffer(delta.layout, bytes(delta.data)), 3.0))
        aggregator.step()
        assert aggregator.weights()["w"].tolist() == [1.0]


@pytest.mark.parametrize("kind", [FedAvgServer, FedAvgMServer, FedAdagradServer, FedAdamServer, FedYogiServer, FedBuffServer])
def test_a_restored_aggregator_goes_on_to_the_same_bits(kind):
    start = random_bundle(1)
    unbroken, restored = kind(start, TRAINABLE), kind(random_bundle(2), TRAINABLE)
    folded(unbroken, DELTAS[:2]).step()
    saved, state = unbroken.weights(), unbroken.state()
    state = {key: value.copy() for key, value in state.items()}
    folded(restored, DELTAS[3:])  # forgotten with `load`
    restored.load(saved, state)
    for aggregator in (unbroken, restored):
        folded(aggregator, DELTAS[2:]).step()
    assert restored.weights().sha256() == unbroken.weights().sha256()
    assert {k: v.tolist() for k, v in restored.state().items()} == {k: v.tolist() for k, v in unbroken.state().items()}
    assert restored.state()["steps"] == 2


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("summed", [True, False])
def test_a_contribution_near_the_limit_of_the_sum_takes_no_room_of_the_others(deterministic, summed):
    limit = LIMIT if deterministic else PLAIN_LIMIT
    aggregator = FedAvgServer(vector([0.0]), deterministic=deterministic, shares=111)
    delta = PartialSum(aggregator.layout, deterministic) if summed else None

    def work(entry, weight):
        if delta is None:
            return contribution(vector([entry]), weight)
        delta.clear()
        delta.add(vector([entry]), weight)
        return contribution(delta.bundle(), weight, summed=True)

    for entry, weight in ((-0.99 * limit, 1.0), (limit / 110, 1.0), (1e-9, 2.0**27)):
        with pytest.raises(ProtocolError, match="more than its share of what is summed"):
            aggregator.fold(work(entry, weight))
    for _ in range(111):
        aggregator.fold(work(limit / 112 / 4, 4.0))
    assert aggregator.step().metrics["examples"] == 444.0


def test_a_state_that_does_not_fit_is_refused_by_name():
    aggregator = FedAdamServer(vector([0.0, 0.0]))
    state = dict(aggregator.state())
    with pytest.raises(ValueError, match=r"'v' must have shape \[2\], found shape \[3\]"):
        aggregator.load(vector([0.0, 0.0]), {**state, "v": np.zeros(3, np.float32)})
    del state["m"]
    with pytest.raises(ValueError, match=r"'m' must have shape \[2\], found nothing"):
        aggregator.load(vector([0.0, 0.0]), state)
    with pytest.raises(ValueError, match="first difference"):
        aggregator.load(vector([0.0]), aggregator.state())


def test_no_more_entries_are_trainable_than_there_are():
    with pytest.raises(ValueError, match="trainable=3: the weights have 2"):
        FedAvgServer(vector([0.0, 0.0]), 3)


@pytest.mark.parametrize("lr", [0.0, -1.0, math.nan, math.inf])
def test_a_learning_rate_is_a_number_above_zero(lr):
    with pytest.raises(UserError, match=r"lr=.*: must be a number above 0"):
        FedAvgServer(vector([0.0]), lr=lr)


@pytest.mark.parametrize("lr", [1.0, 0.3])
@pytest.mark.parametrize("entries", [1, 7, 1386, 2**15])
def test_the_step_of_a_small_model_by_numpy_has_the_bits_of_the_step_by_torch(entries, lr):
    rng = np.random.Generator(np.random.Philox(entries))
    start = vector(rng.normal(size=entries))
    short, long = FedAvgServer(start, lr=lr), FedAvgServer(start, lr=lr)
    assert short.short
    long.short = False
    for _ in range(3):
        for client in range(4):
            work = Work(vector(rng.normal(size=entries)), 0.1 + client)
            for one in (short, long):
                one.fold(Contribution(Task(0, client, (client,)), 0, 0, work))
        assert short.step() == long.step()
        assert short.weights().sha256() == long.weights().sha256()


def test_models_of_other_sizes_dtypes_and_optimizers_step_by_torch():
    large = vector(np.zeros(2**15 + 1))
    mixed = Bundle.pack({"w": np.zeros(3, np.float32), "n": np.zeros(2, np.int64)})
    small = vector([0.0, 0.0])
    servers = [FedAvgServer(large), FedAvgServer(mixed), FedAvgServer(small, trainable=1), FedAvgServer(small, update=Adam())]
    assert not any(one.short for one in servers)
