"""Numbers for each held-out example: their mean is the number of the whole set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from shoal.envs.datasets import Examples
from shoal.nets.evaluation import Evaluation, Loss


def examples(n: int, weighted: bool = False, labels: Callable[[np.random.Generator], Any] | None = None) -> Examples:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, 4)).astype(np.float32)
    y = labels(rng) if labels else rng.integers(0, 3, n)
    return Examples(x, y, rng.uniform(0.5, 2, n).astype(np.float32)) if weighted else Examples(x, y)


def scalar(logits: Tensor, y: Tensor) -> Tensor:
    """A loss of a user's own that is a mean already."""
    return functional.cross_entropy(logits, y)


class Scored(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 15)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.inner(x)
        return scores.reshape(-1, 3, 5)


@pytest.mark.parametrize("loss", [functional.cross_entropy, nn.CrossEntropyLoss(), scalar])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_mean_over_examples_is_the_number_of_the_whole(loss: Loss, weighted: bool) -> None:
    if weighted and loss is not functional.cross_entropy:
        loss = nn.CrossEntropyLoss(reduction="none")
    evaluation = Evaluation(lambda: nn.Linear(4, 3), examples(25, weighted), loss, batch_size=8)
    weights = evaluation.flat.bundle()
    whole, each = evaluation(weights), evaluation.apiece(weights)
    assert set(each) == {"loss", "accuracy"}
    for name, values in each.items():
        assert values.shape == (25,)
        assert values.mean() == pytest.approx(whole[name], rel=1e-6)
    assert set(each["accuracy"].tolist()) <= {0.0, 1.0}


def test_an_example_of_several_labels_counts_by_those_that_count() -> None:
    def labels(rng: np.random.Generator) -> Any:
        y = rng.integers(0, 3, (12, 5))
        y[rng.uniform(size=y.shape) < 0.3] = -100
        y[:, 0] = 1
        return y

    evaluation = Evaluation(Scored, examples(12, labels=labels), functional.cross_entropy, batch_size=12)
    weights = evaluation.flat.bundle()
    assert evaluation.apiece(weights)["accuracy"].mean() == pytest.approx(evaluation(weights)["accuracy"])


def test_a_loss_that_is_not_over_classes_has_no_accuracy() -> None:
    data = examples(9, labels=lambda rng: rng.normal(size=(9, 1)).astype(np.float32))
    evaluation = Evaluation(lambda: nn.Linear(4, 1), data, nn.MSELoss())
    weights = evaluation.flat.bundle()
    each = evaluation.apiece(weights)
    assert set(each) == {"loss"}
    with torch.no_grad():
        x, y = (torch.from_numpy(part) for part in (data.x, data.y))
        squares = (evaluation.flat.module(x) - y) ** 2
    np.testing.assert_allclose(each["loss"], squares[:, 0], rtol=1e-5)
