"""A worker that sends a client's weights whole, where another sends their difference from the weights that it started from.

The one idea: a rule that mixes models (FedAsync) then needs no version of the weights but the newest.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shoal.actors import work_of
from shoal.actors.workers.around import Around
from shoal.protocol.exact import VALUES
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Work


class Whole(Around):
    """A worker around another, to whose deltas it adds the weights that the task began with. A work without arrays, and arrays
    of booleans and one-byte integers, which travel as values, stay as they are."""

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        work = work_of(self.worker, weights, client, task, brief)
        if work.bundle is None:
            return work
        whole = work.bundle.copy()
        for dtype in whole.layout.segments:
            if dtype not in VALUES:
                _add(whole, weights, dtype)
        return replace(work, bundle=whole)


def _add(into: Bundle, weights: Bundle, dtype: str) -> None:
    """Add the first entries of one dtype of `weights` to those of `into`, in place."""
    delta = into.vector(dtype)
    start = weights.vector(dtype)[: delta.size]
    if dtype == "bf16":
        import torch

        from shoal.nets.flat import as_tensor

        a, b = (as_tensor(each).view(torch.bfloat16) for each in (delta, start))
        torch.add(a, b, out=a)
    else:
        np.add(delta, start, out=delta)
