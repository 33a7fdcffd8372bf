"""The gradient of cross entropy through dense layers, by the very kernels that autograd calls, and with the same bits.

The one idea: a step of a small multi-layer perceptron spends most of its time in autograd's books and in calls of modules.
Its backward pass is known, so the kernels can be called one after the other. Whether the bits are the same is not believed: the
first batch of each size is computed both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as hooks

from shoal.nets.evaluation import Loss
from shoal.nets.flat import FlatModule
from shoal.nets.wide import altered, hooked

ATEN = torch.ops.aten
MEAN, IGNORED = 1, -100  # of cross entropy's arguments: the reduction, and the label that is left out


@dataclass(slots=True)
class Layer:
    """A linear layer, x @ w.T + bias. w_t: w transposed. relu: True if the layer's output goes through max(0, .). w_grad,
    bias_grad: views of the flat gradient."""

    w: Tensor
    w_t: Tensor
    bias: Tensor
    w_grad: Tensor
    bias_grad: Tensor
    relu: bool = False


class Dense:
    """The mean cross entropy of a sequence of linear layers with ReLU, on a CPU: logits and loss of a batch, and the gradient
    in `flat.grad`. sure: sizes of batches for which the bits are those of autograd."""

    def __init__(self, flat: FlatModule, layers: list[Layer]) -> None:
        self.flat, self.layers = flat, layers
        self.parameters = list(flat.module.parameters())
        self.gradients = [one for layer in reversed(layers) for one in (layer.w_grad, layer.bias_grad)]
        self.one = torch.ones(())
        self.sure: set[int] = set()

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [B, classes], loss []) of x, float32 [B, features], and y, int64 [B]."""
        inputs, out = [], x
        for layer in self.layers:
            inputs.append(out)
            out = torch.addmm(layer.bias, out, layer.w_t)
            if layer.relu:
                out = torch.relu(out)
        scores = torch.log_softmax(out, 1)
        loss, total = ATEN.nll_loss_forward.default(scores, y, None, MEAN, IGNORED)
        back = ATEN.nll_loss_backward.default(self.one, scores, y, None, MEAN, IGNORED, total)
        back = ATEN._log_softmax_backward_data.default(back, scores, 1, torch.float32)
        after, found = out, list[Tensor]()
        for at in range(len(self.layers) - 1, -1, -1):
            layer, before = self.layers[at], inputs[at]
            if layer.relu:
                back = ATEN.threshold_backward.default(back, after, 0)
            found += (torch.mm(back.t(), before), back.sum(0))  # of memory of their own: bits may depend on where it begins
            if at:
                back = torch.mm(back, layer.w)
            after = before
        torch._foreach_copy_(self.gradients, found)
        self.flat.grad.add_(0.0)  # autograd adds to zeros, which makes 0.0 of -0.0
        return out, loss

    def takes(self, data: Sequence[Tensor]) -> bool:
        """Return whether the batches of these examples have the form that `__call__` wants: x float32 [n, features], y whole
        numbers [n], no weights."""
        x, y = data[:2]
        floats = x.is_floating_point() or getattr(data, "scale", 1.0) != 1
        shaped = x.ndim == 2 and x.shape[1] == self.layers[0].w.shape[1] and y.ndim == 1
        whole = not y.is_floating_point() and y.dtype != torch.bool
        trained = all(one.requires_grad for one in self.parameters)  # still: a method may train them by turns
        return len(data) == 2 and floats and shaped and whole and trained and not torch.is_autocast_enabled("cpu")

    def proved(self, x: Tensor, y: Tensor, logits: Tensor, loss: Tensor) -> Dense | None:
        """Compare with what autograd has made of a batch, whose gradient is in `flat.grad`. Return self, if the bits are the
        same, which counts for all batches of this size; else None."""
        gradient = self.flat.grad.clone()
        ours, mean = self(x, y)
        same = torch.equal(self.flat.grad, gradient) and torch.equal(ours, logits) and torch.equal(mean, loss)
        self.flat.grad.copy_(gradient)
        if same:
            self.sure.add(x.shape[0])
        return self if same or not bool(gradient.isfinite().all()) else None


def dense_of(flat: FlatModule, loss: Loss) -> Dense | None:
    """The Dense of a module and its loss; None if the module is no plain sequence of linear layers with ReLU, all trained, or
    the loss is not the plain cross entropy. A hook, or a class of the user's own, is never passed over."""
    module = flat.module
    plain = loss is functional.cross_entropy or (
        type(loss) is nn.CrossEntropyLoss
        and (loss.weight, loss.reduction, loss.ignore_index, loss.label_smoothing) == (None, "mean", IGNORED, 0.0)
        and not altered(loss)
    )
    if not plain or type(module) is not nn.Sequential or flat.device.type != "cpu" or altered(module):
        return None
    if hooks._global_forward_hooks or hooks._global_forward_pre_hooks or hooks._global_backward_hooks:
        return None
    layers: list[Layer] = []
    for part in module:
        if altered(part):
            return None
        if type(part) is nn.Linear and part.bias is not None:
            trained = [
                one for one in (part.weight, part.bias) if one.requires_grad and one.grad is not None and not hooked(one)
            ]
            if len(trained) < 2 or any(one.w.data_ptr() == part.weight.data_ptr() for one in layers):
                return None
            w, bias = (one.detach() for one in trained)
            w_grad, bias_grad = (one.grad for one in trained)
            assert w_grad is not None
            assert bias_grad is not None
            layers.append(Layer(w, w.t(), bias, w_grad, bias_grad))
        elif type(part) is nn.ReLU and layers and not layers[-1].relu and not part.inplace:
            layers[-1].relu = True
        else:
            return None
    whole = (
        sum(one.w.numel() + one.bias.numel() for one in layers) == flat.trainable == sum(p.numel() for p in module.parameters())
    )
    return Dense(flat, layers) if layers and whole and not layers[-1].relu else None
