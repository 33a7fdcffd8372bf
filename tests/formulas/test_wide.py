"""Steps by wide linear layers have the bits of steps by the flat gradient, without the layers' gradients in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from shoal.actors.workers.local_sgd import LocalSGD
from shoal.envs.datasets import Examples
from shoal.envs.population import Population
from shoal.nets import wide
from shoal.nets.flat import FlatModule
from shoal.nets.models import mlp
from shoal.nets.wide import MOST, wide_of
from shoal.protocol.work import Task

CLIENTS, FEATURES = 5, 24


@pytest.fixture(autouse=True)
def pieces_of_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "PIECE", 16 * 4 * FEATURES)


def examples(client: int) -> Examples:
    rng = np.random.Generator(np.random.Philox(client))
    return Examples(rng.normal(size=(13 + client, FEATURES)).astype(np.float32), rng.integers(0, 3, 13 + client))


class Net(nn.Module):
    """FEATURES -> 40, wide -> 3, by a way of its own from the first to the last."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(FEATURES, FEATURES)  # 24 rows, of which there are no two pieces
        self.fc = nn.Linear(FEATURES, 40)
        self.last = nn.Linear(40, 3)
        self.sure = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(torch.tanh(self.first(x)))) * self.sure

    def between(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fc(x))


class InPlace(Net):
    def between(self, x: Tensor) -> Tensor:
        return self.fc(x).relu_()


class Without(Net):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(FEATURES, 40, bias=False)


class Twice(Net):
    def between(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.fc(x.flip(1))


class AtTimes(Net):
    def between(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.fc(x.flip(1)) if x[0, 0] > 0 else self.fc(x)


class Unused(Net):
    def between(self, x: Tensor) -> Tensor:
        return self.fc(x) if x[0, 0] > 0 else x.repeat(1, 2)[:, :40]


class Elsewhere(Net):
    def between(self, x: Tensor) -> Tensor:
        return self.fc(x) + self.fc.weight.mean(1)


class ElsewhereAtTimes(Net):
    def between(self, x: Tensor) -> Tensor:
        return self.fc(x) + (self.fc.weight.mean(1) if x[0, 0] > 0 else 0.0)


class InThree(Net):
    def between(self, x: Tensor) -> Tensor:
        return self.fc(x.unsqueeze(1)).squeeze(1)


class Untrained(Net):
    def between(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.fc(x)


class Penalised(Net):
    """Takes a gradient of its own in its forward pass, for batches whose first number is above `least`."""

    least = -99.0

    def between(self, x: Tensor) -> Tensor:
        out = torch.tanh(self.fc(x))
        if x[0, 0] <= self.least:
            return out
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return out + slope.sum(1, keepdim=True)


def first() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 40), nn.Tanh(), nn.Linear(40, 3))


def dense() -> nn.Module:
    torch.manual_seed(0)
    return mlp((FEATURES, 40, 33, 3))


def worker(model: Callable[[], nn.Module]) -> LocalSGD:
    people = Population(CLIENTS, examples)
    return LocalSGD(model, people, functional.cross_entropy, batch_size=5, local_epochs=2, seed=3)


def deltas(made: LocalSGD, clients: Sequence[int]) -> dict[int, tuple[str, object]]:
    weights, task = FlatModule(made.model()).bundle(), Task(1, 0, tuple(clients))
    works = {client: made.run(weights, client, task) for client in clients}
    return {client: (work.bundle.sha256(), work.totals) for client, work in works.items() if work.bundle is not None}


@pytest.mark.parametrize(
    ("model", "kept"),
    [
        (Net, True),
        (InPlace, True),
        (Without, True),
        (Twice, True),
        (AtTimes, None),
        (Unused, True),
        (Elsewhere, False),
        (ElsewhereAtTimes, None),
        (InThree, True),
        (Untrained, True),
        (Penalised, False),
        (first, True),
        (dense, True),
    ],
)
def test_a_client_has_the_same_bits_with_and_without_it(model: Callable[[], nn.Module], kept: bool | None) -> None:
    """kept: whether the layers are still taken at the end; None: it depends on the first batch."""
    with_it, other, without = (worker(model) for _ in range(3))
    without.straight = without.dense = None
    expected = deltas(without, range(CLIENTS))
    assert expected == deltas(with_it, range(CLIENTS)) == deltas(other, range(CLIENTS - 1, -1, -1))
    assert expected == deltas(with_it, range(CLIENTS))  # when all sizes of batches are known
    assert with_it.straight is not None
    assert with_it.straight.sizes or model in (Twice, Untrained)  # of which no batch goes straight
    assert kept is None or kept == (with_it.straight.wide is not None)


@pytest.mark.parametrize("model", [Net, dense], ids=str)
def test_the_gradient_of_a_wide_layer_is_never_in_memory(model: Callable[[], nn.Module]) -> None:
    made = worker(model)
    deltas(made, [0])
    made.flat.grad.fill_(7.0)
    deltas(made, [0])
    assert made.straight is not None
    assert made.straight.wide is not None
    assert bool((made.flat.grad == 7.0).all())


def test_inputs_that_were_changed_in_place_are_refused() -> None:
    class Changing(Net):
        spoil = False

        def between(self, x: Tensor) -> Tensor:
            out = self.fc(x := x * 1.0)
            if Changing.spoil:
                x.add_(1.0)
            return out

    made = worker(Changing)
    deltas(made, [0])
    Changing.spoil = True
    with pytest.raises(RuntimeError, match="changed in place"):
        deltas(made, [0])
    assert all("forward" not in vars(part) for part in made.flat.module.modules())


def test_gradients_that_a_module_takes_at_times_are_not_left_out_in_silence() -> None:
    made = worker(Penalised)
    part = made.flat.module
    assert isinstance(part, Penalised)
    part.least = 99.0
    deltas(made, [0])
    part.least = -99.0
    with pytest.raises(RuntimeError, match="takes gradients in its forward pass for some batches only"):
        deltas(made, [0])


def test_a_batch_too_large_goes_by_autograd_with_the_same_bits() -> None:
    people = Population(1, lambda _: Examples(np.ones((MOST, FEATURES), np.float32), np.zeros(MOST, np.int64)))
    made, without = (LocalSGD(Net, people, functional.cross_entropy, batch_size=MOST, local_epochs=3) for _ in range(2))
    without.straight = None
    assert deltas(made, [0]) == deltas(without, [0])


def hooked() -> nn.Module:
    made = Net()
    made.fc.register_forward_hook(lambda module, given, out: 2 * out)
    return made


def watched() -> nn.Module:
    made = Net()
    made.fc.weight.register_hook(lambda gradient: 2 * gradient)
    return made


def frozen() -> nn.Module:
    made = Net()
    made.fc.weight.requires_grad_(False)
    return made


def tied() -> nn.Module:
    made = Net()
    made.other = nn.Linear(FEATURES, 40)
    made.other.weight = made.fc.weight
    return made


def normed() -> nn.Module:
    made = Net()
    made.fc = nn.utils.parametrizations.weight_norm(made.fc)
    return made


def small() -> nn.Module:
    return mlp((FEATURES, 16, 31, 3))


def narrow() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 40).double(), nn.Linear(40, 3))


@pytest.mark.parametrize("model", [hooked, watched, frozen, tied, normed, small, narrow])
def test_no_other_layer_is_a_wide_one(model: Callable[[], nn.Module]) -> None:
    assert wide_of(FlatModule(model())) is None
