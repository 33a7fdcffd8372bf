"""A torch module's pass as actors make it: arrays go in, and the network's numbers and the next state come out.

The one idea: kinds of networks differ in what their modules return, and a policy says once how that is read. So the same pass
is made by the module itself, by its compiled form (nets/compiled.py) or on a GPU (nets/on_device.py), unknown to the policy.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from shoal.envs.spaces import Array, Floats, apart
from shoal.nets.acting import Around, OfModule, Policy, State
from shoal.nets.flat import FlatModule, as_tensor

Found: TypeAlias = tuple[Tensor, Mapping[str, Tensor]]
"""The network's numbers [B, P], and the state after them: name -> [B, ...]; {} for a module without memory."""
Read: TypeAlias = Callable[[Any], Found]
"""A function: what a module's forward returned -> the numbers and the state in it."""

NEAR = 1e-3, 1e-4  # relative and absolute difference between two ways of computing a network that is rounding
ROUNDED = 3e-2, 3e-2  # the same of a network that computes in bfloat16, whose numbers have 8 bits


class Forward:
    """The pass of the module in `flat`, by the module itself. read: what its outputs mean."""

    def __init__(self, flat: FlatModule, read: Read) -> None:
        self.flat, self.read = flat, read

    def __call__(self, seen: Array, state: State) -> tuple[Floats, State]:
        """The numbers, float32 [B, P], of observations [B, *obs], and the state after them. state: before them; {} for a module
        without memory."""
        return passed(self.run, seen, state)

    def run(self, seen: Any, state: Mapping[str, Tensor]) -> Found:
        """The same of tensors. seen: a tensor, or part -> tensor."""
        numbers, after = self.read(self.flat.module(seen, state) if state else self.flat.module(seen))
        return numbers.float(), {name: after[name].float() for name in state}


def passed(run: Callable[[Any, Mapping[str, Tensor]], Found], seen: Array, state: State) -> tuple[Floats, State]:
    """The numbers and the state that `run` finds, as arrays."""
    with torch.inference_mode():
        before = {name: as_tensor(np.ascontiguousarray(array)) for name, array in state.items()}
        numbers, after = run(tensors(seen), before)
        return numbers.numpy(), {name: array.numpy() for name, array in after.items()}


def tensors(seen: Array) -> Any:
    """Observations as a module gets them: a tensor, or part -> tensor."""
    if seen.dtype.names is None:
        return as_tensor(np.ascontiguousarray(seen))
    inner = apart(seen)[0]  # copied: a field of a single record counts as contiguous, with strides that torch does not take
    return (
        as_tensor(inner.copy()) if isinstance(inner, np.ndarray) else {name: as_tensor(x.copy()) for name, x in inner.items()}
    )


def of_module(policy: Policy) -> OfModule | None:
    """The part of a policy that is a torch module: the policy itself, or the network inside it; None if there is none."""
    while isinstance(policy, Around):
        policy = policy.inner
    inner = policy if isinstance(policy, OfModule) else getattr(policy, "net", None)
    return inner if isinstance(inner, OfModule) else None


def off(module: nn.Module, found: tuple[Floats, State], wanted: tuple[Floats, State]) -> float:
    """The largest difference between the numbers and states that two ways of computing the module found; 0: it is rounding."""
    rounds = any(getattr(part, "precision", "") == "bf16" for part in module.modules())
    relative, absolute = ROUNDED if rounds else NEAR
    pairs = [(found[0], wanted[0]), *((found[1][name], its) for name, its in wanted[1].items())]
    if all(np.allclose(ours, its, relative, absolute, equal_nan=True) for ours, its in pairs):
        return 0.0
    return max(float(np.nan_to_num(np.abs(ours - its), nan=math.inf).max()) for ours, its in pairs)


def first_line(wrong: Exception) -> str:
    """The first line of an exception's text, or its name."""
    return (str(wrong).strip().splitlines() or [type(wrong).__name__])[0][:200]


def say(text: str) -> None:
    """Print a line of Shoal's to standard error."""
    print(f"shoal: {text}", file=sys.stderr, flush=True)
