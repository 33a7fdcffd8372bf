"""The step of several small multi-layer perceptrons at once, by the kernels that a traced step calls, called one by one.

The one idea: of a traced step's operations most only shape tensors. The backward pass of dense layers and cross entropy is
known, so a few batched products and sums are all that a step needs, for any number of clients, without a trace for each.
"""

from __future__ import annotations

from collections.abc import Sequence

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
