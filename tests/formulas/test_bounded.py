"""A bound that follows the median of recent norms: what it refuses, when it moves, and what it does not depend on."""

from __future__ import annotations

import math
import random
from contextlib import suppress

import numpy as np
import pytest
from federated_deltas import contribution, vector
from hypothesis import given
from hypothesis import strategies as st

from shoal.aggregators.around.bounded import LEAST, WINDOW, Bounded
from shoal.aggregators.around.compressed import Decompressed
from shoal.aggregators.fedavg import FedAvgServer
from shoal.aggregators.fedbuff import FedBuffServer
from shoal.protocol.compress import Packed, codec_of
from shoal.protocol.errors import ProtocolError
from shoal.protocol.exact import PartialSum
from shoal.protocol.layout import Bundle

NORMS = st.lists(st.floats(0.5, 40.0, width=32), min_size=1, max_size=30)


def long(norm: float) -> Bundle:
    return vector([0.6 * norm, 0.8 * norm])


def bounded(factor: float = 3.0) -> Bounded:
    return Bounded(FedAvgServer(vector([0.0, 0.0])), factor)


def version(aggregator: Bounded, norms: list[float]) -> list[float]:
    """One version of these; those that were accepted."""
    accepted = []
    for norm in norms:
        with suppress(ProtocolError):
            aggregator.fold(contribution(long(norm)))
            accepted.append(norm)
    if accepted:
        aggregator.step()
    return accepted


def test_what_is_far_longer_than_is_usual_is_refused_with_norm_bound_and_median():
    aggregator = bounded()
    version(aggregator, [1.0] * 6 + [3.0] * 5)
    with pytest.raises(ProtocolError, match=r"^norm 3\.01 is above the bound of 3: 3 times the median of recent norms, 1$"):
        aggregator.fold(contribution(long(3.01)))
    assert version(aggregator, [2.99, 50.0, 1.0]) == [2.99, 1.0]


def test_what_is_refused_leaves_no_trace():
    clean, tried = bounded(), bounded()
    for aggregator in (clean, tried):
        version(aggregator, [1.0] * 10)
    version(tried, [100.0, 1.0, math.nan, 2.0])
    version(clean, [1.0, 2.0])
    assert tried.weights().sha256() == clean.weights().sha256()
    assert (tried.median, tried.state()["recent_norms"].tolist()) == (clean.median, clean.state()["recent_norms"].tolist())


def test_there_is_no_bound_until_enough_were_accepted():
    aggregator = bounded()
    for _ in range(LEAST - 1):
        assert version(aggregator, [1.0]) == [1.0]
    assert version(aggregator, [1e6]) == [1e6]
    assert aggregator.median == 1.0
    assert version(aggregator, [1e6]) == []


def test_deltas_of_nothing_but_zeros_bound_nothing():
    aggregator = bounded()
    version(aggregator, [0.0] * 20)
    assert aggregator.bound == math.inf
    assert version(aggregator, [5.0]) == [5.0]


def test_the_median_is_of_the_latest_versions_as_many_as_make_up_the_window():
    aggregator = bounded(factor=1e9)
    rng = np.random.default_rng(0)
    rounds = [rng.uniform(1, 9, 20).astype(np.float32).tolist() for _ in range(9)]
    for i, norms in enumerate(rounds):
        version(aggregator, norms)
        window = [norm for earlier in rounds[max(0, i - 5) : i + 1] for norm in earlier]  # 6 versions of 20 make 101
        assert aggregator.median == pytest.approx(np.median(window), rel=1e-6)
    many = rng.uniform(1, 9, 3 * WINDOW).tolist()
    version(aggregator, many)
    assert aggregator.median == pytest.approx(np.median(many), rel=1e-6)
    assert len(aggregator.state()["recent_norms"]) == 3 * WINDOW


@given(st.lists(NORMS, min_size=1, max_size=8), st.integers(0, 2**32))
def test_the_order_of_arrival_within_a_version_decides_nothing(versions, seed):
    one, other, draw = bounded(1.5), bounded(1.5), random.Random(seed)
    for norms in versions:
        assert sorted(version(one, norms)) == sorted(version(other, draw.sample(norms, len(norms))))
        assert one.bound == other.bound
    assert one.weights().sha256() == other.weights().sha256()


@given(st.lists(NORMS, min_size=2, max_size=8), st.data())
def test_a_restored_one_goes_on_with_the_same_bound(versions, data):
    unbroken, restored = bounded(1.5), bounded(1.5)
    cut = data.draw(st.integers(0, len(versions)))
    for norms in versions[:cut]:
        version(unbroken, norms)
    restored.fold(contribution(long(7.0)))  # forgotten with `load`
    restored.load(unbroken.weights(), unbroken.state())
    for norms in versions[cut:]:
        assert version(restored, norms) == version(unbroken, norms)
    assert restored.weights().sha256() == unbroken.weights().sha256()
    assert (restored.bound, restored.state()["steps"]) == (unbroken.bound, unbroken.state()["steps"])


def test_a_norm_that_is_known_is_not_computed_again(monkeypatch):
    aggregator = bounded()
    monkeypatch.setattr("shoal.aggregators.around.bounded.squares", None)
    for _ in range(10):
        aggregator.fold(contribution(long(2.0), norm=1.0))  # believed
    aggregator.step()
    with pytest.raises(ProtocolError, match=r"norm 3\.5 is above the bound of 3"):
        aggregator.fold(contribution(long(1.0), norm=3.5))


def test_what_is_no_number_is_refused_by_name():
    with pytest.raises(ProtocolError, match=r"'w' .* NaN"):
        bounded().fold(contribution(vector([1.0, math.nan])))


def test_it_takes_no_sums_as_no_client_can_be_seen_in_one():
    part = PartialSum(vector([0.0, 0.0]).layout)
    part.add(long(1.0), 1.0)
    assert not Bounded.linear
    with pytest.raises(ProtocolError, match="one by one"):
        bounded().fold(contribution(part.bundle(), part.weight, summed=True))


def test_what_was_compressed_is_bounded_by_the_norm_of_what_was_unpacked():
    codec = codec_of("int8", block=2)
    packed = Packed(codec, long(1.0).layout)
    aggregator = Decompressed(Bounded(FedBuffServer(vector([0.0, 0.0])), 2.0), codec)
    rng = np.random.default_rng(0)
    for _ in range(10):
        aggregator.fold(contribution(packed.pack(long(1.0), rng), norm=1e9))  # of the packed numbers: means nothing
    aggregator.step()
    aggregator.fold(contribution(packed.pack(long(1.9), rng)))
    with pytest.raises(ProtocolError, match=r"norm 2\.\d+ is above the bound of [12]\.\d+: 2 times"):
        aggregator.fold(contribution(packed.pack(long(2.1), rng)))
    again = Decompressed(Bounded(FedBuffServer(vector([0.0, 0.0])), 2.0), codec)
    aggregator.step()
    again.load(aggregator.weights(), aggregator.state())
    with pytest.raises(ProtocolError, match="times the median"):
        again.fold(contribution(packed.pack(long(2.5), rng)))
