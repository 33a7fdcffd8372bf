"""Server optimizers against their published steps, written out in float64, and against torch where it has the same rule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from federated_deltas import contribution, vector
from servers import FedAdagradServer, FedAdamServer, FedAvgMServer, FedYogiServer

from shoal.aggregators.fedavg import FedAvgServer
from shoal.nets.updates import Adam, AdamW
from shoal.protocol.errors import UserError

# Three rounds of two clients with weights 3 and 1; each entry tells another story: steady, alternating, fading, tiny, none.
WEIGHTS = (3.0, 1.0)
START = np.array([1.0, -1.0, 0.5, 0.01, 2.0])
ROUNDS = [
    [[0.50, 0.4, 1.0, 1e-5, 0.0], [0.30, 0.2, 2.0, 2e-5, 0.0]],
    [[0.45, -0.3, 0.1, 1e-5, 0.0], [0.55, -0.5, 0.2, -2e-5, 0.0]],
    [[0.60, 0.4, 0.01, 1e-5, 0.0], [0.40, 0.1, 0.0, 2e-5, 0.0]],
]
DELTAS = [np.average(np.array(clients), axis=0, weights=WEIGHTS) for clients in ROUNDS]
ROUNDING = {"rtol": 1e-6, "atol": 1e-9}
"""Weights and moments are kept in float32, deltas arrive in it, three times over: a few units of 6e-8 of a number about 1."""

Second = Callable[[np.ndarray, np.ndarray], np.ndarray]


def run(aggregator: FedAvgServer) -> list[np.ndarray]:
    """Weights after each round."""
    after = []
    for clients in ROUNDS:
        for client, weight in zip(clients, WEIGHTS, strict=True):
            aggregator.fold(contribution(vector(client), weight))
        aggregator.step()
        after.append(aggregator.weights()["w"].astype(np.float64))
    return after


def algorithm_2(second: Second, lr: float, beta1: float, tau: float) -> list[np.ndarray]:
    """Reddi et al. 2021, algorithm 2, as printed: m_-1 = 0, v_-1 = tau**2."""
    x, m, v, after = START, np.zeros(5), np.full(5, tau**2), []
    for delta in DELTAS:
        m = beta1 * m + (1 - beta1) * delta
        v = second(v, delta)
        x = x + lr * m / (np.sqrt(v) + tau)
        after.append(x)
    return after


def the_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, **ROUNDING)


def test_fedadam_is_algorithm_2():
    adam = algorithm_2(lambda v, d: 0.95 * v + 0.05 * d**2, lr=0.1, beta1=0.8, tau=0.01)
    the_same(run(FedAdamServer(vector(START), lr=0.1, beta1=0.8, beta2=0.95, tau=0.01)), adam)


def test_fedyogi_is_algorithm_2():
    def yogi(v: np.ndarray, d: np.ndarray) -> np.ndarray:
        return v - 0.05 * d**2 * np.sign(v - d**2)

    the_same(
        run(FedYogiServer(vector(START), lr=0.1, beta1=0.8, beta2=0.95, tau=0.01)),
        algorithm_2(yogi, lr=0.1, beta1=0.8, tau=0.01),
    )


def test_fedadagrad_is_algorithm_2():
    the_same(
        run(FedAdagradServer(vector(START), lr=0.1, beta1=0.5, tau=0.01)),
        algorithm_2(lambda v, d: v + d**2, lr=0.1, beta1=0.5, tau=0.01),
    )


def test_the_three_second_moments_differ_where_they_should():
    """Yogi forgets more slowly than Adam where deltas fade; Adagrad never forgets."""
    settings = {"lr": 0.1, "tau": 0.01, "beta1": 0.0}
    adagrad, adam, yogi = (
        FedAdagradServer(vector(START), **settings),
        FedAdamServer(vector(START), **settings),
        FedYogiServer(vector(START), **settings),
    )
    for aggregator in (adagrad, adam, yogi):
        run(aggregator)
    fading = [float(aggregator.state()["v"][2]) for aggregator in (adagrad, adam, yogi)]
    assert fading[0] > fading[2] > fading[1]


def test_fedavgm_is_hsu_et_al():
    x, v, expected = START, np.zeros(5), []
    for delta in DELTAS:
        v = 0.7 * v + delta
        x = x + 0.5 * v
        expected.append(x)
    the_same(run(FedAvgMServer(vector(START), lr=0.5, beta=0.7)), expected)


def test_fedavgm_is_torch_sgd_with_momentum_on_the_negative_delta():
    the_same(run(FedAvgMServer(vector(START), lr=0.5, beta=0.7)), by_torch(torch.optim.SGD, lr=0.5, momentum=0.7))


def test_fedadagrad_without_momentum_is_torch_adagrad_from_tau_squared():
    expected = by_torch(torch.optim.Adagrad, lr=0.1, initial_accumulator_value=0.01**2, eps=0.01)
    the_same(run(FedAdagradServer(vector(START), lr=0.1, tau=0.01)), expected)


def test_fedadam_is_not_torch_adam_which_corrects_for_the_start():
    expected = by_torch(torch.optim.Adam, lr=0.1, betas=(0.8, 0.95), eps=0.01)
    found = run(FedAdamServer(vector(START), lr=0.1, beta1=0.8, beta2=0.95, tau=0.01))
    assert abs(found[0][0] - expected[0][0]) > 0.01


def test_any_update_may_be_the_servers():
    settings = {"lr": 0.1, "betas": (0.8, 0.95), "weight_decay": 0.1}
    the_same(run(FedAvgServer(vector(START), update=Adam(**settings))), by_torch(torch.optim.Adam, **settings))
    the_same(run(FedAvgServer(vector(START), update=AdamW(**settings))), by_torch(torch.optim.AdamW, **settings))


def test_an_update_that_counts_its_steps_goes_on_after_a_restart():
    whole, first, second = (FedAvgServer(vector(START), update=Adam(0.1)) for _ in range(3))
    after = run(whole)
    assert run(first)[-1].tolist() == after[-1].tolist()
    second.load(first.weights(), first.state())
    assert [one.tolist() for one in run(whole)] == [other.tolist() for other in run(second)]


def by_torch(optimizer: Callable[..., torch.optim.Optimizer], **settings: Any) -> list[np.ndarray]:
    x = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    moving, after = optimizer([x], **settings), []
    for delta in DELTAS:
        x.grad = -torch.tensor(delta)
        moving.step()
        after.append(x.detach().numpy().copy())
    return after


def test_momentum_of_zero_and_a_rate_of_one_is_fedavg():
    plain, momentum = run(FedAvgServer(vector(START))), run(FedAvgMServer(vector(START), beta=0.0))
    assert all((one == other).all() for one, other in zip(plain, momentum, strict=True))


def test_only_trainable_entries_go_through_the_optimizer():
    aggregator = FedAdamServer(vector(START), 2, lr=0.1)
    after = run(aggregator)
    np.testing.assert_allclose(after[-1][2:], (START + sum(DELTAS))[2:], **ROUNDING)
    assert abs(after[-1][0] - (START + sum(DELTAS))[0]) > 0.1
    assert {name: state.shape for name, state in aggregator.state().items()} == {"steps": (), "m": (2,), "v": (2,)}


def test_order_changes_no_bit_of_an_optimizer_either():
    one, other = (FedYogiServer(vector(START)) for _ in range(2))
    for clients in ROUNDS:
        pairs = list(zip(clients, WEIGHTS, strict=True))
        for aggregator, order in ((one, pairs), (other, pairs[::-1])):
            for client, weight in order:
                aggregator.fold(contribution(vector(client), weight))
            aggregator.step()
    assert one.weights().sha256() == other.weights().sha256()
    assert one.state()["v"].tobytes() == other.state()["v"].tobytes()


def test_blocks_leave_no_seam():
    """Each entry moves by itself: a long vector moves as its pieces do."""
    n = 70_001
    delta = np.random.default_rng(0).normal(size=n).astype(np.float32)
    whole, last = FedAdamServer(vector(np.zeros(n))), FedAdamServer(vector(np.zeros(5)))
    for _ in range(2):
        for aggregator, part in ((whole, delta), (last, delta[-5:])):
            aggregator.fold(contribution(vector(part)))
            aggregator.step()
    np.testing.assert_array_equal(whole.weights()["w"][-5:], last.weights()["w"])
    assert (whole.weights()["w"] != 0).all()


@pytest.mark.parametrize(
    ("make", "setting", "allowed"),
    [
        (FedAvgMServer, {"beta": 1.0}, "momentum=1.0: must be a number from 0 to below 1"),
        (FedAvgMServer, {"lr": -1.0}, "lr=-1.0: must be a number above 0"),
        (FedAdagradServer, {"tau": 0.0}, "tau=0.0: must be a number above 0"),
        (FedAdamServer, {"beta1": -0.1}, "beta1=-0.1: must be a number from 0 to below 1"),
        (FedAdamServer, {"beta2": 1.5}, "beta2=1.5: must be a number from 0 to below 1"),
        (FedYogiServer, {"beta2": math.nan}, "beta2=nan: must be a number from 0 to below 1"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_range(make, setting, allowed):
    with pytest.raises(UserError) as refusal:
        make(vector([0.0]), **setting)
    assert str(refusal.value) == allowed
