"""How good weights are on examples: the same sums on the coordinator's held-out data and on a client's own.

The one idea: a `Tally` collects what each batch gave without waiting for the device; its sums add up over batches and
clients, and only a total divided by its count is a mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor, nn

from shoal.envs.datasets import Examples
from shoal.nets.flat import FlatModule, as_tensor
from shoal.nets.models import Model, seeded
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Metrics, Totals

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(logits [B, ...], y [B, ...]) -> the mean over the batch, a scalar. torch.nn.functional.cross_entropy is one."""


class Tally:
    """Losses and hits of many batches. Logits are not kept: a batch costs one argmax."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.sizes: list[int] = []
        self.guesses: list[Tensor] = []
        self.truths: list[Tensor] = []

    def add(self, logits: Tensor, y: Tensor, loss: Tensor) -> None:
        self.losses.append(loss.detach())
        self.sizes.append(len(y))
        if logits.ndim == y.ndim + 1 and not y.is_floating_point():  # classes on axis 1, as cross_entropy has them
            self.guesses.append(logits.argmax(1))
            self.truths.append(y)

    def totals(self) -> dict[str, tuple[float, float]]:
        """{"loss": (sum over examples, examples), "accuracy": (hits, labels)}; no accuracy where y is no class.
        A loss that is not finite shows in the sum."""
        losses: list[float] = torch.stack(self.losses).tolist()
        totals = {"loss": (sum(map(float.__mul__, losses, map(float, self.sizes))), float(sum(self.sizes)))}
        if self.guesses:
            hits = torch.cat(self.guesses) == torch.cat(self.truths)
            totals["accuracy"] = (float(hits.sum()), float(hits.numel()))
        return totals


def batches(x: Tensor, y: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """In order, `size` examples at a time, the last perhaps fewer: views."""
    for first in range(0, len(y), size):
        yield x[first : first + size], y[first : first + size]


@torch.no_grad()
def tallied(module: nn.Module, x: Tensor, y: Tensor, loss: Loss, batch_size: int) -> Totals:
    """Totals of a module as it is, in its evaluation mode, over x [n, ...] and y [n, ...] on its device."""
    module.eval()
    tally = Tally()
    for xs, ys in batches(x, y, batch_size):
        logits = module(xs)
        tally.add(logits, ys, loss(logits, ys))
    return tally.totals()


class Evaluation:
    """Weights -> {"loss", "accuracy", "examples"} on examples that stay on the device, `batch_size` at a time."""

    def __init__(
        self, model: Model, examples: Examples, loss: Loss, batch_size: int = 1000, device: torch.device | str = "cpu"
    ) -> None:
        self.flat = FlatModule(seeded(model, 0), device)  # its weights come with each call
        self.loss = loss
        self.batch_size = batch_size
        self.x = as_tensor(examples.x).to(device)
        self.y = as_tensor(examples.y).to(device)

    def __call__(self, weights: Bundle) -> Metrics:
        self.flat.read(weights)
        totals = tallied(self.flat.module, self.x, self.y, self.loss, self.batch_size)
        means = {name: total / count for name, (total, count) in totals.items()}
        return {**means, "examples": float(len(self.y))}
