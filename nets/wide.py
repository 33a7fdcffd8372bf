"""Steps of plain SGD by wide linear layers, without their gradients in memory.

The one idea: the gradient of a linear layer's weights is the product of two thin matrices, its inputs and what came back to its
outputs, and may be larger than a core's cache. A few rows of the gradient at a time are made and added to the weights, so that
the gradient itself is never written to memory and read again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional

from shoal.nets.flat import FlatModule

PIECE = 2**20  # bytes of a gradient that are made at a time
ROWS = 16  # the number of rows made at a time is a multiple of it, so that each piece begins where a product's block does
MOST = 128  # examples of a batch from which on the product is most of the time


@dataclass(eq=False)
class Layer:
    """A linear layer. place: its weights, [outputs, inputs]. into: the view of the flat gradient. passed: (inputs [B, inputs],
    their version when they were used, what came back to the outputs [B, outputs]) of each pass, in the order of the backward
    passes."""

    part: nn.Linear
    parameter: Tensor
    place: Tensor
    into: Tensor
    passed: list[tuple[Tensor, int, Tensor]] = field(default_factory=list)


class Wide:
    """The linear layers of a module whose weights' gradients are larger than PIECE, while the module is trained.

    alone: True if autograd is not to make the gradients of their weights.
    """

    def __init__(self, layers: list[Layer]) -> None:
        self.layers = layers
        self.alone = False
        self.room = torch.empty(max(_parts(one.place)[-1] * one.place.shape[1] for one in layers), dtype=torch.float32)

    def begin(self) -> None:
        """Look on at the layers' passes, until `end`."""
        for layer in self.layers:
            layer.part.forward = partial(self._forward, layer)  # type: ignore[method-assign]

    def end(self) -> None:
        for layer in self.layers:
            vars(layer.part).pop("forward", None)
            layer.passed.clear()

    def await_one(self, alone: bool) -> None:
        """Forget the passes before the next batch's."""
        self.alone = alone
        for layer in self.layers:
            layer.passed.clear()

    def add(self, alpha: float) -> None:
        """Add alpha * the gradient of the one pass of each layer to its weights. A layer without a pass stays."""
        for layer in self.layers:
            for x, back in _sound(layer):
                _add(layer.place, back.t(), x, alpha, self.room)

    def spill(self) -> None:
        """Add the gradients of all passes to the flat gradient."""
        for layer in self.layers:
            for x, back in _sound(layer):
                layer.into.add_(torch.mm(back.t(), x))

    def _forward(self, layer: Layer, x: Tensor) -> Tensor:
        part = layer.part
        if not _takes(layer, x):
            return nn.Linear.forward(part, x)
        out = functional.linear(x, layer.place if self.alone else part.weight, part.bias)
        out.register_hook(_noting(layer, x.detach(), x._version))  # type: ignore[no-untyped-call]
        return out


def _noting(layer: Layer, x: Tensor, version: int) -> Callable[[Tensor], None]:
    def note(back: Tensor) -> None:
        layer.passed.append((x, version, back))

    return note


def _takes(layer: Layer, x: Tensor) -> bool:
    part = layer.part
    if not (torch.is_grad_enabled() and part.weight is layer.parameter and layer.parameter.requires_grad):
        return False
    comes_back = x.requires_grad or (part.bias is not None and part.bias.requires_grad)
    plain = type(x) is Tensor and x.ndim == 2 and x.dtype == torch.float32 and x.shape[0] < MOST
    return comes_back and plain and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


def _sound(layer: Layer) -> list[tuple[Tensor, Tensor]]:
    """Raises RuntimeError for inputs that were changed in place since they were used, as autograd does."""
    for x, version, _ in layer.passed:
        if x._version != version:
            raise RuntimeError("the inputs of a linear layer were changed in place before their gradient was made")
    return [(x, back) for x, _, back in layer.passed]


def _rows(place: Tensor) -> int:
    return max(ROWS, PIECE // (4 * place.shape[1]) // ROWS * ROWS)


def _parts(place: Tensor) -> list[int]:
    """The numbers of rows that are made at a time. The last is the largest: a product of a row or two has other bits."""
    rows, whole = _rows(place), place.shape[0]
    return [rows] * (whole // rows - 1) + [rows + whole % rows]


def _add(place: Tensor, back: Tensor, x: Tensor, alpha: float, room: Tensor) -> None:
    """Add alpha * back @ x to `place`, [outputs, inputs], a few rows at a time."""
    inputs, parts = place.shape[1], _parts(place)
    for its, left in zip(torch.split(place, parts), torch.split(back, parts), strict=True):
        its.add_(torch.mm(left, x, out=room[: its.numel()].view(-1, inputs)), alpha=alpha)


def wide_of(flat: FlatModule) -> Wide | None:
    """The wide linear layers of a module on a CPU; None if there is none. A layer with hooks, of a class of the user's own or
    whose weights another part has too is none of them."""
    if flat.device.type != "cpu":
        return None
    places = {id(parameter): (place, into) for parameter, place, into in flat.trained_parts}
    owners = list(chain.from_iterable(part._parameters.values() for part in flat.module.modules()))
    layers = []
    for part in flat.module.modules():
        if type(part) is not nn.Linear or id(part.weight) not in places or altered(part) or hooked(part.weight):
            continue
        place, into = places[id(part.weight)]
        if sum(one is part.weight for one in owners) == 1 and place.shape[0] >= 2 * _rows(place) and place.nbytes > PIECE:
            layers.append(Layer(part, part.weight, place, into))
    return Wide(layers) if layers else None


def altered(part: nn.Module) -> bool:
    """Return whether a module has hooks, a forward of its own, or a parametrization."""
    kept = vars(part)
    hooked = any(value for name, value in kept.items() if name.endswith(("_hooks", "_pre_hooks")))
    return hooked or "forward" in kept or "parametrizations" in kept["_modules"]


def hooked(parameter: Tensor) -> bool:
    """Return whether a parameter has hooks, which look at its gradient."""
    return bool(parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None))
