"""Flower's clients run as workers, unchanged, and learn what Flower's own simulation learns."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from flower_standin import flwr_or_stand_in
from whole import run

from shoal.adapters.flower import Flower
from shoal.jobs.job import Job
from shoal.protocol.errors import UserError
from shoal.protocol.work import Task

# Made by flower_expected.py with flwr 1.42.0 and ray 2.55.1: three rounds of FedAvg over all six clients.
SLOPE = np.array(
    [
        [0.9577279686927795, -0.96596360206604, 0.008235955610871315],
        [0.37150871753692627, 0.3956943154335022, -0.7672030329704285],
        [-0.8159294128417969, 0.1256330907344818, 0.6902961134910583],
        [-0.1671779900789261, 0.4963420629501343, -0.3291640877723694],
    ],
    np.float32,
)
OFFSET = np.array([0.04371293634176254, -0.02295665442943573, -0.0207563154399395], np.float32)


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """flower_clients.py, imported anew."""
    flwr_or_stand_in(monkeypatch)
    monkeypatch.delitem(sys.modules, "flower_clients", raising=False)
    import flower_clients

    yield flower_clients
    monkeypatch.delitem(sys.modules, "flower_clients", raising=False)


def job(clients: ModuleType, client: Any = None, **more: Any) -> Job:
    settings = {"rounds": clients.ROUNDS, "fit_config": clients.fit_config, "eval_every": 1, "eval_cohort": clients.CLIENTS}
    return Flower(client or clients.client_fn, clients=clients.CLIENTS, **{**settings, **more})


def test_three_rounds_end_with_the_weights_of_flowers_own_simulation(clients: ModuleType) -> None:
    for actors in (0, 2):
        weights = run(job(clients), actors).weights
        np.testing.assert_allclose(weights["0"], SLOPE, atol=2e-6)
        np.testing.assert_allclose(weights["1"], OFFSET, atol=2e-6)
    assert abs(SLOPE).max() > 0.1  # they have moved


def test_metrics_are_means_over_examples_and_evaluate_is_asked_of_the_evaluating_cohort(clients: ModuleType) -> None:
    metrics = dict(run(job(clients), 0).seen.steps)[clients.ROUNDS]
    outcome = run(job(clients, rounds=clients.ROUNDS - 1), 0)  # clients evaluate the weights that a round begins with
    judged = [clients.judged(number, [outcome.weights["0"], outcome.weights["1"]]) for number in range(clients.CLIENTS)]
    total = sum(examples for _, examples, _ in judged)
    assert metrics["eval/loss"] == pytest.approx(sum(loss * n for loss, n, _ in judged) / total)
    assert metrics["eval/accuracy"] == pytest.approx(sum(right * n for _, n, right in judged) / total)
    assert metrics["examples"] == total
    assert metrics["after"] > 0


def test_any_method_works_on_flowers_clients(clients: ModuleType) -> None:
    plain, adam = (run(job(clients, method=method), 0).weights["0"] for method in ("fedavg", "fedadam"))
    assert np.abs(plain - adam).max() > 1e-3
    assert np.isfinite(adam).all()


def test_a_client_may_be_made_of_its_number_as_text_or_without_to_client(clients: ModuleType) -> None:
    expected = run(job(clients), 0).sha256
    for client in (lambda cid: clients.FlowerClient(int(cid)), lambda context: clients.client_fn(context).numpy_client):
        assert run(job(clients, client), 0).sha256 == expected


@pytest.mark.parametrize("initial", ["list", "names", "module"])
def test_the_first_weights_may_be_given(clients: ModuleType, initial: str) -> None:
    import torch

    arrays = [np.full((4, 3), 0.5, np.float32), np.ones(3, np.float32)]
    module = torch.nn.Linear(3, 4)
    given = {"list": arrays, "names": {"a": arrays[0], "b": arrays[1]}, "module": module}[initial]
    first, _ = job(clients, initial=given).problem.first(0)
    names = [place.name for place in first.layout.places]
    assert names == {"list": ["0", "1"], "names": ["a", "b"], "module": ["weight", "bias"]}[initial]
    if initial != "module":
        assert all((first[name] == array).all() for name, array in zip(names, arrays, strict=True))


def test_what_no_flower_client_is_is_refused_in_one_line(clients: ModuleType) -> None:
    with pytest.raises(UserError, match="client is 3: expected a function client_fn"):
        Flower(3, clients=2)
    with pytest.raises(UserError, match="gave str: expected a NumPyClient or a Client"):
        job(clients, lambda context: "me").problem.first(0)
    with pytest.raises(UserError, match="initial is 7: expected a list of arrays"):
        job(clients, initial=7).problem.first(0)


def test_a_client_that_keeps_state_in_its_context_is_told_that_it_is_not_kept(clients: ModuleType) -> None:
    def forgetful(context: Any) -> Any:
        context.state["seen"] = 1 if isinstance(context.state, dict) else _record()
        return clients.client_fn(context)

    made = job(clients, forgetful)
    weights, _ = made.problem.first(0)
    with pytest.raises(UserError, match=r"left seen in context\.state, which is not kept"):
        made.worker().run(weights, 0, Task(0, 0, (0,)))


def _record() -> Any:
    from flwr.app import ConfigRecord

    return ConfigRecord({"n": 1})


def test_a_client_app_of_messages_learns_the_same(clients: ModuleType) -> None:
    pytest.importorskip("flwr.clientapp", reason="flwr is not installed: pip install 'shoal[flower]'")
    weights = run(job(clients, clients.app(), initial=clients.first(), fit_config=None), 0).weights
    np.testing.assert_allclose(weights["0"], SLOPE, atol=2e-6)


def test_a_client_app_of_a_client_fn_learns_the_same(clients: ModuleType) -> None:
    app = pytest.importorskip("flwr.clientapp", reason="flwr is not installed: pip install 'shoal[flower]'")
    weights = run(job(clients, app.ClientApp(clients.client_fn), initial=clients.first()), 0).weights
    np.testing.assert_allclose(weights["0"], SLOPE, atol=2e-6)


def test_a_client_that_takes_flowers_own_records_learns_the_same(clients: ModuleType) -> None:
    pytest.importorskip("flwr.clientapp", reason="flwr is not installed: pip install 'shoal[flower]'")

    class Bare:
        """A flwr.client.Client without anything that a NumPyClient has."""

        def __init__(self, inner: Any) -> None:
            self.fit, self.evaluate, self.get_parameters = inner.fit, inner.evaluate, inner.get_parameters

    weights = run(job(clients, lambda context: Bare(clients.client_fn(context))), 0).weights
    np.testing.assert_allclose(weights["0"], SLOPE, atol=2e-6)
