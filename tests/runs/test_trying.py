"""A mistake in a model, data or a loss is one line before a run has a folder; what is no mistake goes through."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import shoal
from shoal import Federated
from shoal.commands.cli import main
from shoal.envs.datasets import Examples
from shoal.envs.population import Population
from shoal.protocol.errors import UserError
from shoal.runs.theirs import told

RNG = np.random.default_rng(4)
X = RNG.normal(size=(120, 4)).astype(np.float32)
Y = np.arange(120) % 5
REAL = X[:, 0]
FEW: dict[str, Any] = {"clients": 4, "cohort": 4, "rounds": 1, "local_epochs": 1, "partition": "iid"}


def linear(outputs: int = 5, inputs: int = 4) -> nn.Module:
    return nn.Linear(inputs, outputs)


def one() -> nn.Module:
    return nn.Linear(4, 1)


class Pairs(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 30

    def __getitem__(self, i: int) -> Any:
        return {"pixels": X[i], "label": Y[i]}


class Mine(nn.Module):
    def __init__(self, gives: Any = None, buffer: Tensor | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 5)
        self.register_buffer("phase", buffer)
        self.gives = gives

    def forward(self, x: Tensor) -> Any:
        return self.layer(x) if self.gives is None else self.gives(self.layer(x))


def unfinite() -> nn.Module:
    layer = nn.Linear(4, 5)
    nn.init.constant_(layer.bias, float("inf"))
    return layer


rare = np.where(np.arange(120) == 77, 5, Y)
square = functional.mse_loss
WRONG: dict[str, tuple[Any, Any, Any, str]] = {
    "inputs": (lambda: linear(5, 3), (X, Y), None, "model raised RuntimeError for x float32[10, 4]: mat1 and mat2"),
    "in-forward": (lambda: Mine(lambda x: x @ x), (X, Y), None, "test_trying.py, line "),
    "label": (lambda: linear(3), (X, Y), None, "loss raised IndexError for outputs float32[10, 3] and y int64[10]: Target"),
    "rare-label": (linear, (X, rare), None, "y holds the label 5: the model has outputs for 5 classes, 0 to 4"),
    "loss-matrix": (linear, (X, Y), lambda p, y: p, "loss gave shape [10, 5] for y [10]"),
    "loss-number": (linear, (X, Y), lambda p, y: 0.5, "loss gave float for outputs float32[10, 5] and y int64[10]"),
    "loss-constant": (linear, (X, Y), lambda p, y: p.detach().mean(), "does not depend on any trainable parameter"),
    "integers": (linear, ((X * 9).astype(int), Y), None, "model raised RuntimeError for x int64[10, 4]: mat1 and mat2"),
    "tuple": (lambda: Mine(lambda x: (x, 1)), (X, Y), None, "model gave tuple for x float32[10, 4]: expected one tensor"),
    "lazy": (lambda: nn.LazyLinear(5), (X, Y), None, "model: 'weight' has no shape yet: in the factory, call the lazy"),
    "half": (lambda: linear().half(), (X, Y), None, "parameter 'weight' is torch.float16; only torch.float32 is trained"),
    "complex-buffer": (
        lambda: Mine(buffer=torch.zeros(3, dtype=torch.complex128)),
        (X, Y),
        None,
        "'phase' is torch.complex128",
    ),
    "no-module": (lambda: "linear", (X, Y), None, "model gave str: expected a torch.nn.Module"),
    "unfinite": (unfinite, (X, Y), None, "first weights: 'bias' holds NaN or an infinity"),
    "text": (linear, (X, Y.astype(str)), None, "y holds <U21[120]: expected numbers"),
    "dict": (linear, {"x": X, "y": Y}, None, "data is of type dict: expected a tuple (x, y)"),
    "dict-items": (linear, Pairs(), None, "item 0 of Pairs is of type dict: expected a pair (x, y)"),
    "complex": (linear, lambda: Population(4, lambda client: Examples(X + 1j, Y)), None, "complex64: expected real numbers"),
    "column": (one, (X, REAL), square, "outputs [10, 1] against y [10]: the loss pairs each output with each label"),
    "row": (lambda: nn.Sequential(one(), nn.Flatten(0)), (X, X[:, :1]), square, "outputs [10] against y [10, 1]: the loss"),
    "own-column": (one, (X, REAL), lambda p, y: (p - y).abs().mean(), "outputs [10, 1] against y [10]: the loss pairs"),
    "wide": (lambda: linear(3), (X, X[:, :1]), square, "outputs [10, 3] against y [10, 1]: this loss needs equal shapes"),
    "one-hot": (linear, (X, np.eye(5, dtype=int)[Y]), None, "y int64[10, 5]: Expected floating point"),
    "one-hot-remedy": (linear, (X, np.eye(5, dtype=int)[Y]), None, "; one-hot labels are given as classes, y.argmax(1), or"),
    "label-column": (linear, (X, Y[:, None]), None, "; labels are given as [n]: y.reshape(-1)"),
    "from-one": (linear, (X, Y + 1), None, "; y holds 1 to 5, and the model's 5 outputs are the classes 0 to 4"),
    "below-zero": (linear, (X, Y - 1), None, "; y holds -1 to 3, and the model's 5 outputs are the classes 0 to 4"),
    "plain-logits": (
        linear,
        (X, Y),
        functional.nll_loss,
        "no log probabilities, which nll_loss needs: give loss=nn.functional",
    ),
    "plain-logits-module": (
        linear,
        (X, Y),
        nn.NLLLoss(),
        "no log probabilities, which nll_loss needs: give loss=nn.functional",
    ),
    "held-out": (linear, ((X, Y), (X[:, :2], Y)), None, "model or loss raised RuntimeError for held-out data"),
}


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_line_and_leaves_no_folder(name: str) -> None:
    model, data, loss, says = WRONG[name]
    with pytest.raises(UserError) as wrong:
        shoal.run(Federated(model, data, loss, **FEW), actors=0)
    line = told(wrong.value) or ""
    assert says in line
    assert "\n" not in line
    assert not Path("runs").exists()


def test_a_metric_that_fails_is_told_before_there_is_a_folder() -> None:
    with pytest.raises(UserError, match="metric spread gave shape"):
        shoal.run(Federated(linear, (X, Y), metrics={"spread": lambda p, y: p.std(0)}, **FEW), actors=0)
    assert not Path("runs").exists()


def test_the_command_ends_with_2_and_the_line_of_the_users_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text(
        "import numpy as np\nfrom torch import nn\nfrom shoal import Federated\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.layer = nn.Linear(3, 2)\n\n"
        "    def forward(self, x):\n        return self.layer(x)\n\n\n"
        "job = Federated(Net, (np.zeros((40, 2)), np.arange(40) % 2), clients=3, cohort=2, rounds=1)\n"
    )
    assert main(["simulate", "mine.py:job", "--actors", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("shoal: mine.py, line 12, in forward: model raised RuntimeError for x float32[10, 2]: ")
    assert not Path("runs").exists()


RIGHT: dict[str, tuple[Any, Any, Any]] = {
    "instance": (linear(), (X, Y), None),
    "bfloat16": (linear, (torch.from_numpy(X).bfloat16(), torch.from_numpy(Y)), None),
    "squeezed": (one, (X, REAL), lambda p, y: square(p.squeeze(-1), y)),
    "indexed": (one, (X, REAL), lambda p, y: square(p[:, 0], y)),
    "columns": (one, (X, REAL[:, None]), square),
    "whole-numbers": (lambda: nn.Sequential(one(), nn.Flatten(0)), (X, Y), square),
    "probabilities": (linear, (X, np.eye(5, dtype=np.float32)[Y]), None),
    "ignored": (linear, (X, np.where(Y == 2, -100, Y)), None),
    "module": (linear, (X, Y), nn.CrossEntropyLoss(ignore_index=3)),
    "weighted": (linear, (X, Y, np.ones(120)), None),
    "log-probabilities": (lambda: nn.Sequential(linear(), nn.LogSoftmax(1)), (X, Y), functional.nll_loss),
    "counts": (one, (X, Y), lambda p, y: square(p.squeeze(1), y.float())),
    "signs": (one, (X, np.where(Y > 2, 1, -1)), lambda p, y: functional.soft_margin_loss(p.squeeze(1), y.float())),
    "own-ignored": (linear, (X, np.where(Y == 2, 255, Y)), lambda p, y: functional.cross_entropy(p, y, ignore_index=255)),
    "own-axis": (one, (X, REAL), lambda p, y: square(p, y.unsqueeze(1))),
    "sequences": (
        lambda: nn.Sequential(linear(15), nn.Unflatten(1, (3, 5))),
        (X, np.stack([Y, Y[::-1], Y], axis=1)),
        lambda p, y: functional.cross_entropy(p.flatten(0, 1), y.flatten()),
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_no_mistake_goes_through(name: str) -> None:
    model, data, loss = RIGHT[name]
    metrics = shoal.run(Federated(model, data, loss, **FEW), actors=0).metrics
    assert metrics["held_out_loss"] > 0
    assert ("accuracy" in metrics) == (name in ("instance", "bfloat16", "ignored", "module", "weighted", "log-probabilities"))


def test_first_weights_may_be_torch_tensors() -> None:
    job = Federated(worker=lambda: None, weights=lambda: dict(linear().named_parameters()))  # type: ignore[arg-type, return-value]
    assert job.problem.first(0)[0]["weight"].shape == (5, 4)


def test_trying_leaves_the_global_generators_as_they_were() -> None:
    job = Federated(lambda: nn.Sequential(linear(), nn.Dropout()), (X, Y), **FEW)
    before = (random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist())
    job.prepare()
    job.check_parts()
    job.try_out()
    assert (random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()) == before
