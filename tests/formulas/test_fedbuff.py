"""FedBuff against its algorithm: K deltas, each discounted by how stale it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from federated_deltas import contribution, vector
from hypothesis import given
from hypothesis import strategies as st

from shoal.aggregators.fedavg import FedAvgServer
from shoal.aggregators.fedbuff import FedBuffServer
from shoal.nets.updates import Momentum
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.exact import PartialSum
from shoal.protocol.work import Contribution

START = np.array([1.0, -2.0, 0.0])
BUFFER = [([0.3, 0.1, -1.0], 4.0, 0), ([-0.2, 0.5, 2.0], 1.0, 3), ([0.7, -0.1, 0.5], 2.0, 8)]  # delta, weight, lag
ROUNDING = {"rtol": 0, "atol": 1e-6}
"""Weights are float32; a discounted weight is rounded to 2**-20 of about 1, in numerator and denominator alike."""


def buffered(buffer: list[tuple[list[float], float, int]]) -> list[Contribution]:
    return [contribution(vector(delta), weight, lag=lag, client=i) for i, (delta, weight, lag) in enumerate(buffer)]


def stepped(aggregator: FedAvgServer, contributions: list[Contribution]) -> np.ndarray:
    for one in contributions:
        aggregator.fold(one)
    aggregator.step()
    return aggregator.weights()["w"].astype(np.float64)


def test_a_step_is_the_mean_by_weight_and_staleness():
    s = [1 / math.sqrt(1 + lag) for _, _, lag in BUFFER]
    top = sum(np.array(delta) * weight * s[i] for i, (delta, weight, _) in enumerate(BUFFER))
    expected = START + 0.5 * top / sum(weight * s[i] for i, (_, weight, _) in enumerate(BUFFER))
    np.testing.assert_allclose(stepped(FedBuffServer(vector(START), lr=0.5), buffered(BUFFER)), expected, **ROUNDING)


def test_without_normalising_it_is_the_papers_algorithm_1():
    """w <- w + lr / K * sum(delta_i / sqrt(1 + lag_i)): with every client alike, over the size of the buffer."""
    expected = START + 0.5 / 3 * sum(np.array(delta) / math.sqrt(1 + lag) for delta, _, lag in BUFFER)
    alike = buffered([(delta, 1.0, lag) for delta, _, lag in BUFFER])
    np.testing.assert_allclose(stepped(FedBuffServer(vector(START), lr=0.5, normalise=False), alike), expected, **ROUNDING)


def test_a_single_stale_delta_is_discounted_only_without_normalising():
    stale = buffered([([1.0, 1.0, 1.0], 5.0, 3)])
    np.testing.assert_allclose(stepped(FedBuffServer(vector(START)), stale), START + 1.0, **ROUNDING)
    np.testing.assert_allclose(stepped(FedBuffServer(vector(START), normalise=False), stale), START + 0.5, **ROUNDING)


def test_a_second_step_does_not_remember_the_first_ones_divisor():
    aggregator = FedBuffServer(vector([0.0]), normalise=False)
    stepped(aggregator, buffered([([1.0], 7.0, 0)]))
    assert stepped(aggregator, buffered([([1.0], 1.0, 3)])).tolist() == [1.5]


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_the_exponent_says_how_fast_staleness_counts(exponent):
    found = stepped(FedBuffServer(vector([0.0]), exponent=exponent), buffered([([1.0], 1.0, 0), ([0.0], 1.0, 3)]))
    assert found[0] == pytest.approx(1 / (1 + 4.0**-exponent), abs=1e-6)


def test_fresh_deltas_make_it_fedavg_to_the_bit():
    fresh = buffered([(delta, weight, 0) for delta, weight, _ in BUFFER])
    assert (stepped(FedBuffServer(vector(START)), fresh) == stepped(FedAvgServer(vector(START)), fresh)).all()


@given(st.permutations(buffered(BUFFER * 3)), st.booleans())
def test_order_of_arrival_changes_no_bit(order, normalise):
    expected = stepped(FedBuffServer(vector(START), normalise=normalise), buffered(BUFFER * 3))
    assert (stepped(FedBuffServer(vector(START), normalise=normalise), order) == expected).all()


def test_it_may_drive_a_server_optimizer():
    aggregator = FedBuffServer(vector([0.0]), update=Momentum(lr=1.0, momentum=0.5))
    assert stepped(aggregator, buffered([([1.0], 1.0, 2)])).tolist() == [1.0]
    assert stepped(aggregator, buffered([([1.0], 1.0, 0)])).tolist() == [2.5]


def test_it_takes_no_sums_since_each_has_a_lag_of_its_own():
    part = PartialSum(vector(START).layout)
    part.add(vector(START), 1.0)
    assert not FedBuffServer.linear
    with pytest.raises(ProtocolError, match="takes no sums"):
        FedBuffServer(vector(START)).fold(contribution(part.bundle(), part.weight, summed=True))


def test_a_refused_delta_does_not_count_in_the_divisor():
    aggregator = FedBuffServer(vector([0.0]), normalise=False)
    with pytest.raises(ProtocolError):
        aggregator.fold(contribution(vector([math.nan]), 3.0))
    assert stepped(aggregator, buffered([([1.0], 1.0, 0)])).tolist() == [1.0]


def test_an_exponent_below_zero_is_refused():
    with pytest.raises(UserError, match=r"exponent=-1.0: must be a number from 0"):
        FedBuffServer(vector([0.0]), exponent=-1.0)


def test_without_exact_sums_the_divisor_is_the_sum_of_the_weights_themselves():
    aggregator = FedBuffServer(vector([0.0]), normalise=False, deterministic=False)
    weights = [3e-6, 0.7e-6 + 1e-6]  # far from the grid of exact weights
    found = stepped(aggregator, [contribution(vector([2.0]), weight, client=i) for i, weight in enumerate(weights)])
    assert found == pytest.approx([2.0], rel=1e-6)
