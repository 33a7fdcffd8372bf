"""FedAsync against its algorithm: each client's model is mixed into the global one, less if it was made from old weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from federated_deltas import LAYOUT, TRAINABLE, contribution, random_bundle, vector

from shoal.actors.workers.whole import Whole
from shoal.aggregators.fedasync import FedAsyncServer, constant, hinge, polynomial
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Work


def reference(start: np.ndarray, models: list[tuple[np.ndarray, int]], alpha: float, s: Callable[[int], float]) -> np.ndarray:
    """Algorithm 1: x_t = (1 - alpha_t) x_{t-1} + alpha_t x_new, alpha_t = alpha * s(t - tau)."""
    x = start.astype(np.float64)
    for x_new, lag in models:
        m = alpha * s(lag)
        x = (1 - m) * x + m * x_new
    return x


@pytest.mark.parametrize("s", [constant, hinge(10.0, 4.0), polynomial(0.5)], ids=["constant", "hinge", "polynomial"])
def test_each_model_is_mixed_in_as_in_algorithm_1(s):
    draw = np.random.default_rng(3)
    start = draw.normal(size=7).astype(np.float32)
    models = [(draw.normal(size=7).astype(np.float32), int(lag)) for lag in draw.integers(0, 12, 30)]
    server = FedAsyncServer(vector(start), mixing=0.6, staleness=s)
    for model, lag in models:
        server.fold(contribution(vector(model), 5.0, lag=lag))
        server.step()
    np.testing.assert_allclose(server.weights()["w"], reference(start, models, 0.6, s), atol=2e-6)


def test_one_round_by_hand():
    """w = 1, a client's model 3 of lag 3: m = 0.5 / sqrt(4) = 0.25, so w = 0.75 + 0.75 = 1.5."""
    server = FedAsyncServer(vector([1.0]), mixing=0.5, staleness=polynomial(0.5))
    server.fold(contribution(vector([3.0]), 7.0, lag=3))
    moved = server.step()
    assert server.weights()["w"].tolist() == [1.5]
    assert moved.metrics == {"examples": 7.0, "update_norm": 0.5, "mixing": 0.25}


def test_the_functions_of_staleness_are_those_of_section_5_2():
    assert [constant(lag) for lag in (0, 9)] == [1.0, 1.0]
    assert [hinge(10.0, 4.0)(lag) for lag in (0, 4, 5, 6)] == [1.0, 1.0, 1 / 11, 1 / 21]
    assert [polynomial(0.5)(lag) for lag in (0, 3, 8)] == [1.0, 0.5, 1 / 3]


def test_a_mixing_of_1_takes_a_fresh_model_as_it_is_in_every_dtype():
    start, model = random_bundle(1), random_bundle(2)
    server = FedAsyncServer(start, TRAINABLE, mixing=1.0)
    server.fold(contribution(model, 3.0))
    server.step()
    for name, array in server.weights().items():
        np.testing.assert_allclose(array, model[name], rtol=0, atol=2**-32, err_msg=name)


def test_half_of_a_model_in_every_dtype():
    start, model = random_bundle(1), random_bundle(2)
    server = FedAsyncServer(start, TRAINABLE, mixing=0.5)
    server.fold(contribution(model, 3.0))
    server.step()
    for name in ("layer.weight", "norm.mean", "double"):
        np.testing.assert_allclose(server.weights()[name], (start[name] / 2 + model[name] / 2), atol=1e-6)
    assert abs(int(server.weights()["norm.batches"]) - (int(start["norm.batches"]) + int(model["norm.batches"])) / 2) <= 0.5
    np.testing.assert_array_equal(server.weights()["mask"], model["mask"])


def test_whole_adds_the_weights_that_the_task_began_with():
    class Differing:
        def run(self, weights: Bundle, client: int, task: Task) -> Work:
            delta = Bundle.zeros(LAYOUT)
            for name, array in delta.items():
                array[...] = random_bundle(2)[name] if name in ("mask", "bytes") else 0
            delta["layer.weight"][...] = 0.5
            delta["norm.batches"][...] = 4
            return Work(delta, 3.0)

    start = random_bundle(1)
    whole = Whole(Differing()).run(start, 0, Task(0, 0, (0,))).bundle
    np.testing.assert_array_equal(whole["layer.weight"], start["layer.weight"] + np.float32(0.5))
    assert whole["norm.batches"] == start["norm.batches"] + 4
    for name in ("half", "brain", "double", "norm.mean"):
        np.testing.assert_array_equal(whole[name], start[name])
    np.testing.assert_array_equal(whole["mask"], random_bundle(2)["mask"])


def test_an_evaluation_stays_as_it_is():
    class Evaluating:
        def run(self, weights: Bundle, client: int, task: Task) -> Work:
            return Work(None, 2.0)

    assert Whole(Evaluating()).run(random_bundle(1), 0, Task(0, 0, (0,))).bundle is None


def test_a_model_that_is_refused_leaves_the_mixing_of_before():
    server = FedAsyncServer(vector([1.0]), mixing=0.5)
    with pytest.raises(ProtocolError):
        server.fold(contribution(vector([np.nan]), lag=9))
    assert server.rate == 0.5


@pytest.mark.parametrize("mixing", [0.0, -0.5, 1.5, float("nan")])
def test_a_mixing_out_of_range_is_refused(mixing):
    with pytest.raises(UserError, match="mixing="):
        FedAsyncServer(vector([1.0]), mixing=mixing)
