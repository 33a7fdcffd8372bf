"""A capture for machines without a GPU: torch's operations are written down with their tensors, and made again.

The one idea: a replayed CUDA graph calls the kernels that were captured, on the memory that they had, and runs no Python. So
does a tape: an operation that it did not write down does not happen, and a number that Python asks for while it is written is
an error, as on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shoal.nets.capturing import WARM

ATEN = torch.ops.aten
WAITS = {ATEN._local_scalar_dense.default, ATEN.is_nonzero.default, ATEN.nonzero.default, ATEN.equal.default}


class Tape(TorchDispatchMode):
    """The operations inside its block. calls: each with its arguments and the tensors that it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func in WAITS:
            raise RuntimeError(f"{func} waits for the device while its work is captured")
        given = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.calls.append((func, args, kwargs or {}, [one for one in tree_leaves(given) if isinstance(one, Tensor)]))
        return given

    @torch.no_grad()
    def again(self) -> None:
        for func, args, kwargs, before in self.calls:
            now = [one for one in tree_leaves(func(*args, **kwargs)) if isinstance(one, Tensor)]
            for into, one in zip(before, now, strict=True):
                if into.data_ptr() != one.data_ptr():
                    into.copy_(one)


def taped(work: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """A Capture (nets/capturing.py) for a CPU."""
    for _ in range(WARM):
        work()
    with Tape() as tape:
        told = work()
    return tape.again, told
