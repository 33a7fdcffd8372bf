"""A torch module whose parameters and buffers live in one flat buffer.

The one idea: parameters are *views* of a flat vector and their gradients are views of another, so that taking weights in,
sending them out, clipping, an optimizer step or a copy to the device is one operation instead of one per layer.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import nn

from shoal.protocol.errors import UserError
from shoal.protocol.exact import VALUES
from shoal.protocol.layout import ALIGNMENT, Bundle, Layout

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "f4": torch.float32,
    "f8": torch.float64,
    "f2": torch.float16,
    "bf16": torch.bfloat16,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "b1": torch.bool,
}
WIRE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def layout_of(module: nn.Module) -> Layout:
    """The layout of a module's weights. Within a dtype, trainable parameters come first, then buffers, then frozen parameters,
    which are `still`. (Those of one byte are not, and come before: contributions hold values of them.)

    Raises UserError for a tensor without a shape, of a lazy module, and for one of a dtype that cannot travel.
    """
    named = dict(module.named_parameters())
    still = {name for name, its in named.items() if not its.requires_grad and WIRE_NAMES.get(its.dtype) not in VALUES}
    ordered = sorted(named.items(), key=lambda each: not each[1].requires_grad)
    first = {name: tensor for name, tensor in ordered if name not in still}
    tensors: dict[str, torch.Tensor] = {
        **first,
        **dict(module.named_buffers()),
        **{name: named[name] for name in named if name in still},
    }
    for name, tensor in tensors.items():
        if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
            raise UserError(f"model: {name!r} has no shape yet: in the factory, call the lazy module once on a batch")
        if tensor.dtype not in WIRE_NAMES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in WIRE_NAMES)
            raise UserError(f"model: {name!r} is {tensor.dtype}; expected one of {known}")
    return Layout.of({name: (WIRE_NAMES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}, still)


def segment(raw: torch.Tensor, layout: Layout, dtype: str) -> torch.Tensor:
    """Return the entries of one dtype in a buffer of `layout`, as a flat view."""
    first, last = layout.segments.get(dtype, (0, 0))
    return raw[first:last].view(TORCH_DTYPES[dtype])


def views(raw: torch.Tensor, layout: Layout) -> dict[str, torch.Tensor]:
    """The arrays of a buffer of `layout`, by name, as views."""
    return {
        place.name: raw[place.offset : place.offset + place.nbytes].view(TORCH_DTYPES[place.dtype]).view(place.shape)
        for place in layout.places
    }


class FlatModule:
    """A module on a device, with its weights as one buffer of the module's `layout`.

    raw: uint8 [layout.nbytes] on the device; every parameter and buffer of `module` is a view of it.
    vector: float32 [n], all float32 entries; its first `trainable` elements are the trainable parameters.
    grad: float32 [trainable]; the parameters' .grad are views of it (clear it with grad.zero_(), not set_to_none).

    A module of which another FlatModule has a part already (a factory may give the same module again) is copied, so that
    weights and mode belong to one FlatModule alone.
    """

    def __init__(self, module: nn.Module, device: torch.device | str = "cpu") -> None:
        if any(hasattr(tensor, "flat") for tensor in (*module.parameters(), *module.buffers())):
            module = deepcopy(module)
        self.module = module.to(device)
        self.layout = layout_of(module)
        self.device = torch.device(device)
        self.raw = _zeros(self.layout.nbytes, self.device)
        self.trainable = sum(p.numel() for p in module.parameters() if p.requires_grad and p.dtype == torch.float32)
        self.grad = _zeros(4 * self.trainable, self.device).view(torch.float32)
        self._host = Bundle(self.layout, self.raw.numpy()) if self.device.type == "cpu" else None
        self.vector = segment(self.raw, self.layout, "f4")
        used = 0
        tensors: dict[str, torch.Tensor] = dict((*module.named_parameters(), *module.named_buffers()))
        self.trained_parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []  # parameter, its place, its gradient's
        for name, view in views(self.raw, self.layout).items():
            tensor = tensors[name]
            view.copy_(tensor.data)
            tensor.data = view
            tensor.flat = True  # type: ignore[attr-defined]
            if tensor.requires_grad and tensor.dtype == torch.float32:
                tensor.grad = self.grad[used : used + tensor.numel()].view(view.shape)
                self.trained_parts.append((tensor, view, tensor.grad))
                used += tensor.numel()
        self._parts = [(prefix, part._buffers) for prefix, part in module.named_modules()]
        self._buffers = self._places()

    def _places(self) -> list[tuple[str, int]]:
        named = ((f"{prefix}.{name}", its) for prefix, buffers in self._parts for name, its in buffers.items())
        return [(name, buffer.data_ptr()) for name, buffer in named if buffer is not None]

    def replaced(self) -> str | None:
        """The name of a buffer in whose place the module put a new tensor, which is not a view of `raw`; None if there is
        none."""
        if (now := self._places()) == self._buffers:
            return None
        return next((name.removeprefix(".") for name, place in now if (name, place) not in self._buffers), None)

    def trained(self) -> FlatModule:
        """Returns self. Raises UserError unless the module has trainable parameters and all of them are float32, because only
        those are in `vector` and `grad`."""
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad and parameter.dtype != torch.float32:
                raise UserError(
                    f"model: parameter {name!r} is {parameter.dtype}; only torch.float32 is trained: use module.float()"
                )
        if not self.trainable:
            raise UserError("model: no trainable parameter; training needs at least one")
        return self

    def read(self, bundle: Bundle) -> None:
        """Take weights in, with one copy. Raises ValueError for a bundle of another layout."""
        self.layout.expect(bundle.layout)
        if self._host is not None:
            np.copyto(self._host.data, bundle.data)  # for a small model, calling torch takes longer than the copy
        else:
            self.raw.copy_(as_tensor(bundle.data))

    def loosen(self) -> None:
        """Let the next backward pass leave gradients in memory of their own: added to `grad`, each would be written, read and
        written again. `gather` or `tighten` ends that."""
        for parameter, _, _ in self.trained_parts:
            parameter.grad = None

    def found(self) -> list[torch.Tensor] | None:
        """The gradients that a backward pass left since `loosen`, one for each trained parameter; None if a parameter has
        none, or a sparse one."""
        grads = [parameter.grad for parameter, _, _ in self.trained_parts]
        whole = all(grad is not None and grad.layout == torch.strided for grad in grads)
        return grads if whole else None  # type: ignore[return-value]  # none is None

    def gather(self) -> None:
        """Write the gradients since `loosen` to `grad`, with the bits that adding to zeros gives them."""
        for parameter, _, into in self.trained_parts:
            grad = parameter.grad
            if grad is None:
                into.zero_()
            elif grad.layout == torch.strided:
                torch.add(grad, 0.0, out=into)  # 0.0 of -0.0, as a sum with 0.0 is
            else:
                into.zero_().add_(grad)

    def tighten(self) -> None:
        """Make the parameters' .grad views of `grad` again."""
        for parameter, _, into in self.trained_parts:
            parameter.grad = into

    def clip(self, most: float) -> torch.Tensor:
        """Scale a gradient that is longer down to the Euclidean norm `most`. Returns the norm before, still on the device."""
        norm: torch.Tensor = self.grad.norm()
        self.grad.mul_((most / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def seen(self) -> Bundle:
        """The weights as they are now, to be looked at until the module changes: without a copy on the CPU."""
        return self._host or self.bundle()

    def bundle(self) -> Bundle:
        """The weights as they are now, in one copy."""
        out = Bundle.zeros(self.layout)
        if self._host is not None:
            np.copyto(out.data, self._host.data)
        else:
            as_tensor(out.data).copy_(self.raw)
        return out


def as_tensor(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """A CPU tensor over a numpy array's memory. torch has no read-only tensors: do not write to the tensor of a read-only
    array. A read-only array that is not C-contiguous is copied."""
    if array.flags.writeable:
        return torch.from_numpy(array)
    array = np.ascontiguousarray(array).reshape(array.shape)  # ascontiguousarray gives an array of 0 dimensions one
    memory = (ctypes.c_uint8 * array.nbytes).from_address(array.ctypes.data)
    memory.owner = array  # type: ignore[attr-defined]  # the tensor keeps `memory`, and so the array, alive
    return torch.from_numpy(np.ctypeslib.as_array(memory).view(array.dtype).reshape(array.shape))


def told(tensor: torch.Tensor) -> str:
    """A tensor's dtype and shape, in words for an error: float32[2, 3]."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _zeros(nbytes: int, device: torch.device) -> torch.Tensor:
    """Aligned bytes of 0. On a CPU numpy takes them: the system gives a page when it is first written, which a gradient may
    never be, and large arrays lie in large pages, of which the processor keeps more addresses."""
    zeros = np.zeros(nbytes + ALIGNMENT, np.uint8) if device.type == "cpu" else None
    raw = torch.zeros(nbytes + ALIGNMENT, dtype=torch.uint8, device=device) if zeros is None else torch.from_numpy(zeros)
    start = -raw.data_ptr() % ALIGNMENT
    return raw[start : start + nbytes]
