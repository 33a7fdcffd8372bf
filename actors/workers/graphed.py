"""Local training on a GPU, where all steps of a client are one CUDA graph, captured once for each number of examples.

The one idea: a step of a small model is 45 kernels, and starting them from Python takes longer than they do. A captured graph
starts them all at once. It holds LocalSGD's own kernels, so that no layer needs a rule of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from shoal.actors.workers.local_sgd import LocalSGD
from shoal.nets.capturing import Capture, cuda_graph
from shoal.nets.evaluation import Arrays, batches, loss_for, mean_loss
from shoal.nets.gpu import has_gpu
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Work

GRAPHS = 64  # graphs that are kept, each with the memory of a step's results; the graph unused for longest is let go of


def graphs(kind: type[LocalSGD]) -> type[GraphedSGD]:
    """Return the class that trains a client of this kind by graphs. Raises UserError if there is none."""
    if kind is not LocalSGD:
        raise UserError(f"engine=graph: {kind.__name__} trains a client in a way of its own; type engine=loop")
    return GraphedSGD


class Graphed:
    """A worker that `make` makes when the first task comes: in the actor's process, because CUDA cannot be used in a copy of a
    process that has used it. Raises UserError on a machine without a GPU that torch can use."""

    def __init__(self, make: Callable[[], GraphedSGD]) -> None:
        if not has_gpu():
            raise UserError("engine=graph: this machine has no GPU that torch can use; type engine=auto")
        self._make, self._made, self._thin = make, list[GraphedSGD](), False

    @property
    def worker(self) -> GraphedSGD | None:
        return self._made[0] if self._made else None

    @property
    def thin(self) -> bool:
        return self._thin

    @thin.setter
    def thin(self, value: bool) -> None:
        self._thin = value

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        if not self._made:
            self._made.append(self._make())
            self._made[0].thin = self._thin
        return self._made[0].run(weights, client, task, brief)


@dataclass(slots=True)
class Captured:
    """A client's steps, and the memory that they read and write. again: makes them. told: float64 [5], sum of losses, their
    count, hits, labels, and the number of labels that the module does not know."""

    again: Callable[[], object]
    data: list[Tensor]
    orders: Tensor
    told: Tensor


@dataclass(eq=False, repr=False)
class GraphedSGD(LocalSGD):
    """LocalSGD on a GPU. The order of a client's examples is a tensor that a graph reads, and its shape depends on the number
    of examples alone. A factor of the learning rate is part of a graph: a schedule that gives many factors captures as many.

    capture: writes down the steps of a client (nets/capturing.py).
    """

    _: KW_ONLY
    device: torch.device | str = "cuda"
    capture: Capture = cuda_graph

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.squares:
            raise UserError("engine=graph: select=oort wants the squares of each example's loss; type engine=loop")
        self.first = self.moments
        self.captured: OrderedDict[tuple[Any, ...], Captured] = OrderedDict()

    def _train(self, data: Arrays, client: int, task: Task) -> dict[str, tuple[float, float]]:
        orders = list(self._orders(data[1].shape[0], self._shuffle(client, task)))
        lengths = tuple(order.shape[0] for order in orders)
        shapes = tuple((array.dtype, tuple(array.shape)) for array in data)
        key = (lengths, shapes, data.scale, self.factor_at(task.version))
        joined = torch.cat(orders)
        if key not in self.captured:
            self.captured[key] = self._capture(data, joined, lengths, key[-1])
            while len(self.captured) > GRAPHS:
                self.captured.popitem(last=False)
        self.captured.move_to_end(key)
        found = self.captured[key]
        for into, array in zip(found.data, data, strict=True):
            into.copy_(array)
        found.orders.copy_(joined)
        found.again()
        loss, count, hits, labels, unknown = found.told.tolist()
        totals = {"loss": (loss, count)}
        return {**totals, "accuracy": (hits, labels)} if labels and not unknown else totals

    def _capture(self, data: Arrays, orders: Tensor, lengths: tuple[int, ...], factor: float) -> Captured:
        held = Arrays(array.clone() for array in data)
        held.scale = data.scale
        orders, before = orders.clone(), self.flat.raw.clone()
        try:
            again, told = self.capture(lambda: self._passes(held, orders, lengths, factor))
        except RuntimeError as refused:
            why = str(refused).strip().partition("\n")[0][:200]
            raise UserError(f"engine=graph: the steps of this model cannot be captured ({why}); type engine=loop") from refused
        self.flat.raw.copy_(before)  # what was made while capturing
        self.moments = self.first
        return Captured(again, list(held), orders, told)

    def _passes(self, data: Arrays, orders: Tensor, lengths: tuple[int, ...], factor: float) -> Tensor:
        """All steps of a client, without a number that the CPU waits for. Returns what Captured.told holds."""
        self.moments = self.first
        self._start()
        loss_of, t = loss_for(data, self.loss), 0
        told = torch.zeros(5, dtype=torch.float64, device=orders.device)
        for order in torch.split(orders, list(lengths)):
            for xs, ys, *weight in batches([array.index_select(0, order) for array in data], self.batch_size, data.scale):
                t += 1
                self.flat.grad.zero_()
                logits = self.flat.module(xs)
                loss = mean_loss(loss_of(logits, ys), ys, *weight)
                loss.backward()  # type: ignore[no-untyped-call]
                self._step(factor, t)
                self._tell(told, logits.detach(), ys, loss.detach(), *weight)
        return told

    def _tell(self, told: Tensor, logits: Tensor, y: Tensor, loss: Tensor, weight: Tensor | None = None) -> None:
        size = torch.full_like(loss, y.shape[0]) if weight is None else weight.sum()
        if self.tally.scores(logits, y):
            labels = y >= 0
            if self.tally.ignored is not None and self.tally.ignored >= 0:
                labels = labels & (y != self.tally.ignored)
            if self.tally.of_labels and weight is None:
                size = labels.sum()
            told[2] += ((logits.argmax(1) == y) & labels).sum()
            told[3] += labels.sum()
            told[4] += (labels & (y >= logits.shape[1])).sum()
        told[0] += torch.where(size > 0, loss * size, 0.0)
        told[1] += size
