"""Work on a GPU that is captured once and started again as a whole.

The one idea: starting a small model's kernels from Python takes longer than they do, so a piece of work is written down as a
CUDA graph. A worker gives a function that changes tensors in place, and does not know how it is made again: so the same code is
tried without a GPU, by a capture that writes down torch's operations (tests/formulas/taping.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Capture: TypeAlias = Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]]
"""work -> (function that makes the work again, tensor that holds its result then). `work` reads and writes the same tensors at
each call, and its shapes depend on nothing that these hold. It may be called several times before; the caller undoes what that
changed."""

WARM = 2  # times that work is done before it is captured: libraries choose their kernels meanwhile


def cuda_graph(work: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """A Capture that makes a CUDA graph. Raises RuntimeError for work that waits for a number of the GPU's."""
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        told = work()
    return graph.replay, told
