"""The accuracy of a tally counts the labels that the loss learns from, and none where the loss is not over classes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from shoal.nets import evaluation
from shoal.nets.evaluation import Tally

LOGITS = torch.eye(4)[[0, 1, 2, 3, 0, 1]]  # guesses 0 1 2 3 0 1


def accuracy(loss: Any, y: list[int], logits: torch.Tensor = LOGITS) -> tuple[float, float] | None:
    tally = Tally(loss)
    for half in (slice(0, 2), slice(2, None)):
        tally.add(logits[half], torch.tensor(y)[half], torch.tensor(1.0))
    return tally.totals().get("accuracy")


def test_ignored_labels_are_no_misses() -> None:
    assert accuracy(functional.cross_entropy, [0, -100, 2, -100, 1, 1]) == (3, 4)
    assert accuracy(partial(functional.cross_entropy, ignore_index=2), [0, 2, 2, 2, 1, 1]) == (2, 3)
    assert accuracy(nn.CrossEntropyLoss(ignore_index=0), [0, 1, 2, 0, 0, 3]) == (2, 3)
    assert accuracy(lambda p, y: p.sum(), [0, -100, 2, 3, 3, 3]) == (3, 5)
    assert accuracy(partial(functional.cross_entropy, ignore_index=255), [0, 255, 2, 3, 255, 3]) == (3, 4)
    assert accuracy(functional.cross_entropy, [-100] * 6) is None


def test_the_hits_of_each_example_add_up_to_those_of_a_tally() -> None:
    for ignored, labels in ((-100, [0, -100, 2, -100, 1, 1]), (255, [0, 255, 2, 3, 255, 3]), (2, [0, 2, 2, 2, 1, 1])):
        loss = partial(functional.cross_entropy, ignore_index=ignored)
        apiece = Tally(loss).hits(LOGITS, torch.tensor(labels))
        assert apiece is not None
        assert (float(apiece[0].sum()), float(apiece[1].sum())) == accuracy(loss, labels)


def test_a_tally_that_begins_anew_forgets_what_it_had() -> None:
    tally = Tally(functional.cross_entropy)
    tally.add(LOGITS, torch.tensor([3, 3, 3, 3, 3, 3]), torch.tensor(9.0))
    tally.begin().add(LOGITS[:2], torch.tensor([0, 2]), torch.tensor(0.5))
    assert tally.totals() == {"loss": (1.0, 2.0), "accuracy": (1.0, 2.0)}


@pytest.mark.parametrize("loss", [functional.mse_loss, nn.L1Loss(), partial(functional.huber_loss, delta=2.0)])
def test_a_loss_that_is_not_over_classes_has_no_accuracy(loss: Any) -> None:
    assert accuracy(loss, [0, 1, 2, 3, 0, 1]) is None


def test_whole_numbers_that_are_no_classes_have_no_accuracy() -> None:
    assert accuracy(lambda p, y: p.sum(), [40, 31, 2, 3, 0, 1]) is None  # the module knows 4 classes
    assert accuracy(lambda p, y: p.sum(), [0, 0, 0, 0, 0, 0], LOGITS[:, :1]) is None


def test_guesses_of_training_are_taken_together_to_the_same_hits(monkeypatch: pytest.MonkeyPatch) -> None:
    y, found = torch.tensor([0, 1, 2, 3, 3, 3]), []
    for kept in (0, 9, 1_000):
        monkeypatch.setattr(evaluation, "KEPT", kept)
        tally = Tally(functional.cross_entropy)
        for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
            tally.add(LOGITS[rows], y[rows], torch.tensor(1.0))
        found.append((tally.totals()["accuracy"], len(tally.guesses)))
    assert found == [((4.0, 6.0), 3), ((4.0, 6.0), 2), ((4.0, 6.0), 1)]


def test_logits_that_the_module_writes_over_when_it_is_evaluated_have_had_their_guesses_taken() -> None:
    tally, out = Tally(functional.cross_entropy, apart=True), torch.empty(2, 4)
    for rows, y in ((slice(0, 2), [0, 1]), (slice(2, 4), [2, 3])):
        tally.add(out.copy_(LOGITS[rows]), torch.tensor(y), torch.tensor(1.0))
    assert tally.totals()["accuracy"] == (4.0, 4.0)


def test_batches_of_other_shapes_have_their_guesses_taken_apart() -> None:
    tally = Tally(functional.cross_entropy)
    for tokens in (3, 5):
        logits = torch.zeros(2, 4, tokens)
        logits[:, 2] = 1.0
        tally.add(logits, torch.full((2, tokens), 2), torch.tensor(1.0))
    assert tally.totals()["accuracy"] == (16.0, 16.0)
    assert accuracy(lambda p, y: p.sum(), [40, 31, 2, 3, 0, 1]) is None  # the module knows 4 classes
    assert accuracy(lambda p, y: p.sum(), [0, 0, 0, 0, 0, 0], LOGITS[:, :1]) is None


def test_a_mean_loss_is_over_the_labels_that_count_whatever_the_batch_size() -> None:
    """The last batches hold ignored labels alone: torch's mean over them is NaN."""
    logits, y = torch.randn(24, 4, generator=torch.Generator().manual_seed(3)), torch.arange(24) % 4
    y[torch.tensor([1, 2, 7])] = -100
    y[15:] = -100
    whole = nn.functional.cross_entropy(logits, y)
    for size in (2, 5, 24):
        tally = Tally(nn.functional.cross_entropy)
        for xs, ys in zip(logits.split(size), y.split(size), strict=True):
            tally.add(xs, ys, nn.functional.cross_entropy(xs, ys))
        total, count = tally.totals()["loss"]
        assert count == 12
        assert total / count == pytest.approx(float(whole), rel=1e-5)
