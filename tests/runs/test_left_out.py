"""Clients that cannot train are told of at the start, where that can be known, and at the end always."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from whole import Seen

import shoal
from shoal import Bundle, Federated, Work
from shoal.envs.datasets import Examples
from shoal.nets.trying import fails_alone
from shoal.runs.summary import closing

RNG = np.random.default_rng(8)
X, Y = RNG.normal(size=(90, 5)).astype(np.float32), np.arange(90) % 3
WHOLE = (X, Y)


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))


def cut(*sizes: int) -> Any:
    """A partition whose clients have these numbers of examples."""
    return lambda labels, clients, seed: np.split(np.arange(len(labels)), np.cumsum(sizes))[:-1]


def outcome(tmp_path: Path, data: Any, model: Any = normed, **settings: Any) -> tuple[list[str], dict[str, Any]]:
    """The lines about data at the start, and summary.json."""
    seen = Seen()
    clients = settings.pop("clients", 4)
    job = Federated(model, data, clients=clients, cohort=clients, rounds=2, batch_size=8, local_epochs=1, **settings)
    run = shoal.run(job, actors=0, folder=tmp_path / "run", observers=[seen])
    summary: dict[str, Any] = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert run.summary == summary
    return [report.text for report in seen.reports if report.kind == "data"], summary


TOLD = (
    "2 of 4 clients (0, 2; 47% of the examples) have a batch of one example, on which the model or its loss raises, and are "
    "left out: drop_last=true leaves it out"
)


def test_a_last_batch_of_one_is_told_of_with_the_remedy(tmp_path: Path) -> None:
    said, summary = outcome(tmp_path, (WHOLE, WHOLE), partition=cut(17, 24, 25, 24))
    assert said == [TOLD]
    assert summary["left_out"] == [0, 2]
    assert "Left out: 2 clients (0, 2), whose last tasks all failed: ValueError: Expected more than 1 " in closing(summary)
    assert closing(summary).count("drop_last=true") == 1


class Squeezing(nn.Module):
    """Gives a single example's outputs without the axis of examples, on which its loss raises."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.only(x).squeeze()
        return out


def test_a_batch_of_one_on_which_the_loss_raises_is_told_of_too(tmp_path: Path) -> None:
    said, summary = outcome(tmp_path, (WHOLE, WHOLE), Squeezing, partition=cut(17, 24, 25, 24))
    assert said == [TOLD]
    assert summary["left_out"] == [0, 2]


class Spreading(nn.Module):
    """Warns on a single example, and trains on it."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) == 1:
            warnings.warn("one example has no spread", stacklevel=1)
        out: torch.Tensor = self.only(x)
        return out


def test_a_model_that_only_warns_of_a_single_example_is_none_that_fails() -> None:
    assert not fails_alone(Spreading, Examples(X, Y), nn.functional.cross_entropy)
    assert fails_alone(normed, Examples(X, Y), nn.functional.cross_entropy)
    assert fails_alone(Squeezing, Examples(X, Y), nn.functional.cross_entropy)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (normed, {"drop_last": True}),
        (normed, {"local_steps": 2}),
        (lambda: nn.Linear(5, 3), {}),
        (lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3)), {}),
    ],
)
def test_nobody_is_left_out_who_can_train(tmp_path: Path, model: Any, settings: dict[str, Any]) -> None:
    said, summary = outcome(tmp_path, (WHOLE, WHOLE), model, partition=cut(17, 24, 25, 24), **settings)
    assert said == []
    assert summary["left_out"] == []
    assert "Left out" not in closing(summary)


def test_a_cell_without_a_number_is_told_of(tmp_path: Path) -> None:
    odd = X.copy()
    odd[50, 3], odd[89, 0] = np.nan, np.inf
    said, summary = outcome(tmp_path, ((odd, Y), WHOLE), lambda: nn.Linear(5, 3), partition=cut(20, 20, 20, 30))
    assert said == ["2 clients hold NaN or an infinity (2, 3): if the model lets it through, they are left out"]
    assert summary["left_out"] == [2, 3]
    assert "holds NaN" in summary["left_out_why"]


def test_a_rare_label_of_one_clients_own_data_set_is_told_before_there_is_a_folder(tmp_path: Path) -> None:
    rare = np.where(np.arange(30) == 11, 3, Y[:30])
    with pytest.raises(shoal.UserError, match="client 2: y holds the label 3: the model has outputs for 3 classes, 0 to 2"):
        outcome(tmp_path, [(X[:40], Y[:40]), (X[:30], Y[:30]), (X[:30], rare)], lambda: nn.Linear(5, 3), clients=3)
    assert not (tmp_path / "run").exists()


def test_a_cell_without_a_number_is_told_of_where_each_client_has_a_data_set_too(tmp_path: Path) -> None:
    shares = [(X[first : first + 30].copy(), Y[first : first + 30]) for first in (0, 30, 60)]
    shares[1][0][7, 4] = np.nan
    said, summary = outcome(tmp_path, shares, lambda: nn.Linear(5, 3), clients=3)
    assert said == ["1 clients hold NaN or an infinity (1): if the model lets it through, they are left out"]
    assert summary["left_out"] == [1]


def test_large_numbers_are_numbers(tmp_path: Path) -> None:
    large = X.copy()
    large[:40] = 3e38
    said, _ = outcome(tmp_path, ((large, Y), WHOLE), lambda: nn.Sequential(nn.Tanh(), nn.Linear(5, 3)), partition="iid")
    assert said == []


def test_clients_without_examples_are_told_of(tmp_path: Path) -> None:
    data = [(X[:0], Y[:0]), WHOLE, (X[:0], Y[:0])]
    said, summary = outcome(tmp_path, (data, WHOLE), lambda: nn.Linear(5, 3), clients=3)
    assert said == ["2 of 3 clients have no examples (0, 2) and are left out"]
    assert summary["left_out"] == [0, 2]


class Moody:
    """A worker of a user's own: client 1 fails in version 0 alone, client 2 always."""

    def run(self, weights: Bundle, client: int, task: Any) -> Work:
        if client == 2 or (client == 1 and task.version == 0):
            raise ValueError("not today")
        return Work(Bundle.zeros(weights.layout))


def test_a_client_that_contributes_later_is_not_left_out(tmp_path: Path) -> None:
    job = Federated(worker=Moody, weights=lambda: {"w": np.zeros(2, np.float32)}, clients=3, cohort=3, rounds=2, strikes=0)
    summary = shoal.run(job, actors=0, folder=tmp_path / "run").summary
    assert summary["left_out"] == [2]
    assert re.search(r"test_left_out\.py, line \d+, in \w+: ValueError: not today$", summary["left_out_why"])


def test_a_softmax_before_cross_entropy_is_told_of_at_the_start(tmp_path: Path) -> None:
    said, _ = outcome(tmp_path, (WHOLE, WHOLE), lambda: nn.Sequential(nn.Linear(5, 3), nn.Softmax(dim=1)))
    assert len(said) == 1
    assert "the model's outputs are probabilities" in said[0]
    assert said[0].endswith("leave out the softmax at the model's end")
