"""Sums of squared losses, by which Oort selects clients (coordinator/deciding/plans/selection.py).

The one idea: a square is of one example's loss, so the loss is asked once more for each example's own where it can tell them.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from shoal.nets.evaluation import Loss
from shoal.protocol.work import Totals


class Squares:
    """Adds up the squares of the losses of many batches. loss: (logits, y) -> the mean loss, or one loss for each example.

    A loss that has the argument `reduction` (as torch.nn.functional's) is asked for each example's own. A loss that only gives
    the mean of a batch counts as that mean for each of its examples.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.reduces = not isinstance(loss, torch.nn.Module) and "reduction" in _parameters(loss)
        self.sums: list[Tensor] = []
        self.count = 0

    @torch.no_grad()
    def add(self, outputs: Any, y: Tensor) -> None:
        """outputs: the model's for the batch, as the loss takes them."""
        loss = self.loss(outputs, y, reduction="none") if self.reduces else self.loss(outputs, y)  # type: ignore[call-arg]
        each = loss.double().reshape(len(y), -1).mean(1) if loss.ndim else loss.double().expand(len(y))
        self.sums.append(each.square().sum())
        self.count += len(y)

    def totals(self) -> Totals:
        """Returns the total `loss_squared`: (sum of squares, number of examples)."""
        return {"loss_squared": (float(sum(float(each) for each in self.sums)), float(self.count))}


def _parameters(loss: Loss) -> frozenset[str]:
    try:
        return frozenset(inspect.signature(loss).parameters)
    except (TypeError, ValueError):  # a function of C
        return frozenset()
