"""Clients trained by a captured graph have the bits of the loop: the capture here writes down torch's operations on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from case_names import without_addresses
from taping import taped
from torch import Tensor, nn
from torch.nn import functional

from shoal.actors.workers import graphed
from shoal.actors.workers.graphed import GraphedSGD
from shoal.actors.workers.local_sgd import LocalSGD
from shoal.envs.datasets import Examples
from shoal.envs.population import Population
from shoal.nets.models import mlp
from shoal.protocol.errors import UserError
from shoal.protocol.work import Task

SIZES = (23, 7, 10, 1, 7)  # two clients of one size share a graph


def examples(client: int, weighted: bool = False, wide: bool = True) -> Examples:
    rng = np.random.Generator(np.random.Philox(client))
    n = SIZES[client]
    x = rng.normal(size=(n, 16)).astype(np.float32) if wide else rng.integers(0, 255, (n, 16)).astype(np.uint8)
    weight = rng.uniform(0, 2, n).astype(np.float32) if weighted else None
    return Examples(x, rng.integers(0, 4, n), weight, scale=1 if wide else 255)


def drops() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 24), nn.BatchNorm1d(24, track_running_stats=True), nn.ReLU(), nn.Linear(24, 4))


def pair(model: Callable[[], nn.Module] | None = None, loss: Any = functional.cross_entropy, **settings: Any) -> Any:
    given = {name: settings.pop(name) for name in ("weighted", "wide") if name in settings}
    parts = (model or (lambda: mlp((16, 32, 4))), Population(len(SIZES), partial(examples, **given)), loss)
    how = {"batch_size": 10, "seed": 5, **settings}
    return LocalSGD(*parts, **how), GraphedSGD(*parts, **how, device="cpu", capture=taped)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"local_epochs": 3, "momentum": 0.9, "weight_decay": 0.01},
        {"mu": 0.5, "clip_grad_norm": 0.3, "weighting": "users"},
        {"optimizer": "adam", "lr": 0.01, "local_steps": 4},
        {"drop_last": True, "lr_schedule": lambda version: 0.5 if version else 1.0},
        {"weighted": True},
        {"wide": False, "batch_size": 4},
        {"loss": partial(functional.cross_entropy, ignore_index=2)},
        {"loss": lambda logits, y: functional.mse_loss(logits, torch.eye(4)[y], reduction="none").mean(1)},
        {"model": lambda: nn.Sequential(nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 4))},
    ],
    ids=without_addresses,
)
def test_a_graph_that_is_played_again_has_the_loops_bits_for_every_client_and_order(settings: dict[str, Any]) -> None:
    loop, graph = pair(**settings)
    weights = loop.flat.bundle()
    for version in (0, 1):
        task = Task(version, 0, tuple(range(len(SIZES))))
        for client in (*task.clients, *reversed(task.clients)):
            one, other = loop.run(weights, client, task), graph.run(weights, client, task)
            assert other.bundle.sha256() == one.bundle.sha256()
            assert (other.weight, other.totals.keys()) == (one.weight, one.totals.keys())
            assert other.totals.get("accuracy") == one.totals.get("accuracy")
            np.testing.assert_allclose(other.totals["loss"], one.totals["loss"], rtol=1e-6)


def test_clients_of_one_size_share_a_graph_and_a_factor_of_the_rate_is_part_of_it() -> None:
    _, graph = pair(lr_schedule=lambda version: (1.0, 1.0, 0.5)[version])
    weights = graph.flat.bundle()
    for version, many in ((0, 4), (1, 4), (2, 8)):
        for client in range(len(SIZES)):
            graph.run(weights, client, Task(version, 0, (client,)))
        assert len(graph.captured) == many


def test_the_graph_unused_for_longest_goes_and_is_captured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphed, "GRAPHS", 2)
    loop, graph = pair()
    weights = loop.flat.bundle()
    for client in (0, 1, 0, 2, 3, 1, 0):
        task = Task(0, 0, (client,))
        assert graph.run(weights, client, task).bundle.sha256() == loop.run(weights, client, task).bundle.sha256()
        assert len(graph.captured) <= 2
    assert [key[0] for key in graph.captured] == [(7,), (23,)]


def test_an_epochs_statistics_are_of_the_clients_own_task() -> None:
    loop, graph = pair(drops, batch_size=20)
    weights = loop.flat.bundle()
    for client in (0, 1, 0):
        task = Task(0, 0, (client,))
        assert graph.run(weights, client, task).bundle.sha256() == loop.run(weights, client, task).bundle.sha256()


class Asking(nn.Module):
    """It asks for a number in the middle of its work."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if float(x.sum()) > -1e9 else x


def test_a_model_that_waits_for_a_number_of_the_devices_is_refused_in_one_line() -> None:
    _, graph = pair(Asking)
    with pytest.raises(UserError, match=r"^engine=graph: the steps of this model cannot be captured \(.*\); type engine=loop$"):
        graph.run(graph.flat.bundle(), 0, Task(0, 0, (0,)))
