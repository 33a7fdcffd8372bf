"""The steps of several small multi-layer perceptrons at once, by the kernels that a traced step calls, called one by one.

The one idea: of a traced step's operations most only shape tensors. The backward pass of dense layers and cross entropy is
known, so a few batched products and sums are all that a step needs, for any number of clients, without a trace for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shoal.nets.dense import Dense
from shoal.nets.tracing import Step

ATEN = torch.ops.aten


def stacked(dense: Dense) -> Step:
    """The step (nets/tracing.py) of clients whose module and loss `dense` computes: linear layers with ReLU between, and the
    mean cross entropy. y: whole numbers that are classes; a number that is none raises RuntimeError."""
    relus = [layer.relu for layer in dense.layers]
    many = len(relus)

    def step(*tensors: Tensor) -> Sequence[Tensor]:
        x, y, share = tensors[-3:]
        inputs, out = [], x
        for at, relu in enumerate(relus):
            inputs.append(out)
            out = torch.baddbmm(tensors[2 * at + 1].unsqueeze(1), out, tensors[2 * at].transpose(1, 2))
            if relu:
                out = out.relu_()
        scores, label = torch.log_softmax(out, 2), y.unsqueeze(2)
        loss = scores.gather(2, label).squeeze(2).mul_(share).sum(1).neg_()
        part = share.unsqueeze(2)
        back = scores.exp_().mul_(part).scatter_add_(2, label, -part)  # the gradient of the losses by the logits
        after, grads = out, list[Tensor]()
        for at in range(many - 1, -1, -1):
            if relus[at]:
                back = ATEN.threshold_backward.default(back, after, 0)
            grads += (back.sum(1), torch.bmm(back.transpose(1, 2), inputs[at]))
            if at:
                back = torch.bmm(back, tensors[2 * at])
            after = inputs[at]
        return (*reversed(grads), loss, out)

    return step


@dataclass(slots=True)
class Rows:
    """A layer of the first clients of a Stack, as views of its memory. w [clients, outputs, inputs], bias [clients, outputs],
    out [clients, width, outputs]: results of the layer; back [clients, width, outputs]: their gradients; sums: of these."""

    w: Tensor
    w_t: Tensor
    bias: Tensor
    bias_1: Tensor
    out: Tensor
    back: Tensor
    back_t: Tensor
    grad: Tensor
    sums: Tensor
    relu: bool


class Stack:
    """Clients with perceptrons of one shape, trained together by plain SGD: their weights, layer by layer, and memory for the
    results of a step, all of which serves for the next clients too.

    most: clients at a time, at most. width: examples of a client in a step.
    """

    def __init__(self, dense: Dense, most: int, width: int) -> None:
        self.dense, self.most, self.width = dense, most, width
        self.classes = dense.layers[-1].w.shape[0]
        sizes = [layer.w.shape[0] for layer in dense.layers]
        self.w = [torch.empty(most, *layer.w.shape) for layer in dense.layers]
        self.bias = [torch.empty(most, size) for size in sizes]
        self._out, self._back = ([torch.empty(most, width, size) for size in sizes] for _ in range(2))
        self._sums = [torch.empty(most, size) for size in sizes]
        self._grad = [torch.empty_like(one) for one in self.w]
        self._rows: dict[int, list[Rows]] = {}

    def _of(self, clients: int) -> list[Rows]:
        if (rows := self._rows.get(clients)) is None:
            rows = self._rows[clients] = [
                Rows(w, w.transpose(1, 2), bias, bias.unsqueeze(1), out, back, back.transpose(1, 2), grad, sums, layer.relu)
                for w, bias, out, back, grad, sums, layer in zip(
                    *(
                        [one[:clients] for one in kind]
                        for kind in (self.w, self.bias, self._out, self._back, self._grad, self._sums)
                    ),
                    self.dense.layers,
                    strict=True,
                )
            ]
        return rows

    def begin(self, clients: int) -> None:
        """Give the first clients the module's weights."""
        for its, layer in zip(self._of(clients), self.dense.layers, strict=True):
            its.w.copy_(layer.w)
            its.bias.copy_(layer.bias)

    def parts(self, clients: int) -> Iterator[npt.NDArray[np.float32]]:
        """The weights of the first clients, [clients, entries], one parameter after the other in the module's order."""
        for its in self._of(clients):
            yield from (its.w.view(clients, -1).numpy(), its.bias.numpy())

    def steps(self, actives: Sequence[int], x: Tensor, y: Tensor, share: Tensor, rate: float) -> tuple[Tensor, Tensor, Tensor]:
        """Make steps, each of its first `active` clients. Returns logits [steps, clients, width, classes], y [steps, clients,
        width], and losses [steps, clients], 0 where a client has no step.

        x [steps * clients, width, features], float32. y [steps * clients, width]: classes; a number that is none raises
        RuntimeError. share [steps, clients, width]: weight of each example in its client's mean loss. rate: learning rate.
        """
        steps, clients, width = share.shape
        logits, picked = torch.empty(steps, clients, width, self.classes), torch.zeros(steps, clients, width, 1)
        x, label, part = x.view(steps, clients, width, -1), y.view(steps, clients, width, 1), share.unsqueeze(3)
        minus = -part
        for t, active in enumerate(actives):
            its = [one[t] if active == clients else one[t, :active] for one in (x, label, part, minus, logits, picked)]
            self._step(rate, *its)
        return logits, label.squeeze(3), picked.squeeze(3).mul_(share).sum(2).neg_()

    def _step(self, rate: float, x: Tensor, label: Tensor, part: Tensor, minus: Tensor, logits: Tensor, picked: Tensor) -> None:
        """Make a step of the first clients. logits and picked, the logarithm of each label's probability, are written."""
        rows = self._of(x.shape[0])
        inputs, out = [], x
        *inner, last = rows
        for its in inner:
            inputs.append(out)
            out = torch.baddbmm(its.bias_1, out, its.w_t, out=its.out)
            if its.relu:
                out.relu_()
        inputs.append(out)
        torch.baddbmm(last.bias_1, out, last.w_t, out=logits)
        back = ATEN._log_softmax.out(logits, 2, False, out=last.back)
        torch.gather(back, 2, label, out=picked)
        back.exp_().mul_(part).scatter_add_(2, label, minus)  # the gradient of the losses by the logits
        for at in range(len(rows) - 1, -1, -1):
            its = rows[at]
            if its.relu:
                ATEN.threshold_backward.grad_input(its.back, its.out, 0, grad_input=its.back)
            if at:
                torch.bmm(its.back, its.w, out=rows[at - 1].back)
            gradients = (torch.bmm(its.back_t, inputs[at], out=its.grad), torch.sum(its.back, 1, out=its.sums))
            torch._foreach_add_((its.w, its.bias), gradients, alpha=-rate)
