"""Steps of plain SGD, w <- w - lr * gradient, that do not go by the flat gradient.

The one idea: gradients are added to the weights where autograd left them, and those of wide linear layers as they are made
(nets/wide.py). Whether the bits are those of a step by the flat gradient is not believed: the first batch of each size is
computed both ways.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.nets.flat import FlatModule
from shoal.nets.wide import Wide, wide_of


class Straight:
    """Steps of a module's trained parameters. sizes: of batches for which the bits are those of a step by the flat gradient.
    wide: the layers whose gradients are added as they are made; None: there is none, or their bits were others."""

    def __init__(self, flat: FlatModule) -> None:
        self.flat = flat
        self.w = flat.vector[: flat.trainable]
        self.sizes: set[int] = set()
        self.wide: Wide | None = wide_of(flat)

    def begin(self) -> None:
        """Begin a client's steps, until `end`."""
        if self.wide is not None:
            self.wide.begin()

    def end(self) -> None:
        if self.wide is not None:
            self.wide.end()

    def await_one(self, size: int) -> None:
        """Expect the passes of the next batch, of `size` examples."""
        self.flat.loosen()
        if self.wide is not None:
            self.wide.await_one(size in self.sizes)

    def turn(self) -> None:
        """Expect the backward pass. A module that took gradients in its forward pass has no wide layers: the gradients of these
        by the layers' weights would be left out. Raises RuntimeError if it took none in the batch that was looked at."""
        if self.wide is None or not any(layer.passed for layer in self.wide.layers):
            return
        if self.wide.alone:
            raise RuntimeError(
                "the module takes gradients in its forward pass for some batches only; take them for all, or none"
            )
        self.leave_wide()

    def lies(self) -> bool:
        """Return whether each gradient of the awaited batch lies somewhere whole: not if a parameter has none, a sparse one, or
        one of several parts."""
        apart = self._apart()
        if self.wide is not None and any(len(layer.passed) > 1 for layer in self.wide.layers):
            return False
        for parameter, _, _ in self.flat.trained_parts:
            grad = parameter.grad
            if id(parameter) not in apart:
                if grad is None or grad.layout != torch.strided:
                    return False
            elif grad is not None and self.wide is not None and self.wide.alone:
                return False
        return True

    def add(self, alpha: float) -> None:
        """Add alpha * the gradients of the awaited batch, which all lie somewhere, to the weights."""
        apart = self._apart()
        places, grads = list[Tensor](), list[Tensor]()
        for parameter, place, _ in self.flat.trained_parts:
            if id(parameter) not in apart and parameter.grad is not None:
                places.append(place)
                grads.append(parameter.grad)
        torch._foreach_add_(places, grads, alpha=alpha)
        if self.wide is not None:
            self.wide.add(alpha)

    def _apart(self) -> set[int]:
        """The ids of the parameters whose gradients wide layers add."""
        return set() if self.wide is None else {id(layer.parameter) for layer in self.wide.layers if layer.passed}

    def gather(self) -> None:
        """Write the gradients of the awaited batch to the flat gradient."""
        self.flat.gather()
        if self.wide is not None and self.wide.alone:
            self.wide.spill()

    def proved(self, before: Tensor, alpha: float, size: int) -> Straight | None:
        """Compare with the weights that a step by the flat gradient made of the weights `before`. Return self, if the bits are
        the same, which counts for all batches of this size; else None. The weights stay."""
        after = self.w.clone()
        same = self._same(before, after, alpha)
        if not same and self.wide is not None:
            self.leave_wide()
            same = self._same(before, after, alpha)
        if same:
            self.sizes.add(size)
        self.w.copy_(after)
        return self if same else None

    def leave_wide(self) -> None:
        """Leave the gradients of wide layers to autograd from now on."""
        self.end()
        self.wide, self.sizes = None, set()

    def _same(self, before: Tensor, after: Tensor, alpha: float) -> bool:
        """Return whether the awaited batch makes `after` of the weights `before`, bit for bit."""
        self.w.copy_(before)
        self.add(alpha)
        return torch.equal(after.view(torch.int32), self.w.view(torch.int32))
