"""The gradient of dense layers by hand has the bits of autograd, and no module gets it that might have others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from shoal.actors.workers.local_sgd import LocalSGD
from shoal.envs.datasets import Examples
from shoal.envs.population import Population
from shoal.nets.dense import Dense, dense_of
from shoal.nets.flat import FlatModule
from shoal.nets.models import mlp
from shoal.protocol.work import Task

BATCHES = (1, 2, 3, 7, 10, 33)
SIZES = (23, 7, 10, 1, 14)


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().numpy().tobytes()


@pytest.mark.parametrize("sizes", [(64, 64, 10), (13, 7, 5), (33, 3), (5, 1, 2), (100, 20, 9, 4)], ids=str)
def test_loss_logits_and_gradient_have_the_bits_of_autograd(sizes: tuple[int, ...]) -> None:
    torch.manual_seed(sum(sizes))
    flat = FlatModule(mlp(sizes))
    made = dense_of(flat, functional.cross_entropy)
    assert made is not None
    for batch in BATCHES:
        x, y = torch.randn(batch, sizes[0]), torch.randint(0, sizes[-1], (batch,))
        if batch > 2:
            y[0], x[1] = -100, 0.0  # an ignored label, and an example whose gradients are zeros, some of them below 0
        logits, loss = made(x, y)
        ours = [bits(one) for one in (logits, loss, flat.grad)]
        flat.grad.zero_()
        out = flat.module(x)
        mean = functional.cross_entropy(out, y)
        mean.backward()  # type: ignore[no-untyped-call]
        assert ours == [bits(one) for one in (out, mean, flat.grad)]


def examples(client: int) -> Examples:
    rng = np.random.Generator(np.random.Philox(client))
    return Examples(rng.normal(size=(SIZES[client], 16)).astype(np.float32), rng.integers(0, 4, SIZES[client]))


def worker(**settings: Any) -> LocalSGD:
    return LocalSGD(
        lambda: mlp((16, 9, 4)),
        Population(len(SIZES), examples),
        functional.cross_entropy,
        **{"batch_size": 10, "local_epochs": 2, "seed": 5, **settings},
    )


def deltas(made: LocalSGD) -> list[tuple[bytes, Any]]:
    weights, task = made.flat.bundle(), Task(3, 0, tuple(range(len(SIZES))))
    works = [made.run(weights, client, task) for client in task.clients * 2]
    return [(work.bundle.data.tobytes() if work.bundle else b"", work.totals) for work in works]


@pytest.mark.parametrize(
    "settings",
    [{}, {"momentum": 0.9, "weight_decay": 0.01}, {"mu": 0.5, "clip_grad_norm": 0.3}, {"optimizer": "adam"}],
    ids=str,
)
def test_a_client_has_the_same_bits_and_totals_with_and_without_it(settings: dict[str, Any]) -> None:
    with_it, without = worker(**settings), worker(**settings)
    without.dense = None
    assert deltas(with_it) == deltas(without)
    assert with_it.dense is not None
    assert with_it.dense.sure == {1, 3, 4, 7, 10}


def test_it_is_left_for_good_where_its_bits_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Dense.__call__

    def wrong(self: Dense, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        found = right(self, x, y)
        self.flat.grad[3] = torch.nextafter(self.flat.grad[3], torch.tensor(9.0))
        return found

    without, odd = worker(), worker()
    without.dense = None
    monkeypatch.setattr(Dense, "__call__", wrong)
    assert deltas(odd) == deltas(without)
    assert odd.dense is None


class Own(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def hooked() -> nn.Module:
    made = mlp((16, 9, 4))
    made.register_forward_hook(lambda module, given, out: 2 * out)
    return made


def altered() -> nn.Module:
    made = nn.Linear(16, 4)
    made.forward = lambda x: 2 * nn.functional.linear(x, made.weight)  # type: ignore[method-assign]
    return nn.Sequential(made)


def watched() -> nn.Module:
    made = mlp((16, 9, 4))
    next(made.parameters()).register_hook(lambda gradient: 2 * gradient)
    return made


def frozen() -> nn.Module:
    made = mlp((16, 9, 4))
    next(made.parameters()).requires_grad_(False)
    return made


def shared() -> nn.Module:
    one = nn.Linear(4, 4)
    return nn.Sequential(one, nn.ReLU(), one)


def normed() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(16, 4)))


@pytest.mark.parametrize(
    "model",
    [
        lambda: nn.Sequential(Own(16, 4)),
        hooked,
        altered,
        watched,
        frozen,
        shared,
        normed,
        lambda: nn.Sequential(nn.Linear(16, 4), nn.Dropout(0.5)),
        lambda: nn.Sequential(nn.Linear(16, 4), nn.Tanh()),
        lambda: nn.Sequential(nn.Linear(16, 4), nn.ReLU()),
        lambda: nn.Sequential(nn.Linear(16, 4, bias=False)),
        lambda: nn.Linear(16, 4),
    ],
)
def test_a_module_that_is_more_than_linear_layers_and_relu_has_none(model: Callable[[], nn.Module]) -> None:
    assert dense_of(FlatModule(model()), functional.cross_entropy) is None


@pytest.mark.parametrize(
    "loss",
    [
        lambda logits, y: 1.0 * functional.cross_entropy(logits, y),
        nn.CrossEntropyLoss(weight=torch.ones(4)),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(ignore_index=2),
        functional.mse_loss,
    ],
)
def test_a_loss_that_is_not_the_plain_cross_entropy_has_none(loss: Any) -> None:
    assert dense_of(FlatModule(mlp((16, 9, 4))), loss) is None
    assert dense_of(FlatModule(mlp((16, 9, 4))), nn.CrossEntropyLoss()) is not None


def test_examples_of_another_form_are_left_to_autograd() -> None:
    made = dense_of(FlatModule(mlp((16, 9, 4))), functional.cross_entropy)
    assert made is not None
    x, y = torch.randn(5, 16), torch.zeros(5, dtype=torch.int64)
    assert made.takes((x, y))
    for other in ((x, y, torch.ones(5)), (x[:, :9], y), (x, torch.randn(5, 4)), (torch.randn(5, 2, 16), y), (x.long(), y)):
        assert not made.takes(other)
    with torch.autocast("cpu"):
        assert not made.takes((x, y))
    next(iter(made.parameters)).requires_grad_(False)
    assert not made.takes((x, y))
