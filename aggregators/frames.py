"""Frames of a trajectory put together on the device, as the policy saw them (nets/framed.py).

The one idea: a stack is a window over the rows of one environment. A frame from before an episode's beginning is zeros, and the
frames before the first row came with the trajectory.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shoal.nets.framed import FRAMES

if TYPE_CHECKING:
    from shoal.aggregators.staging import Batch


def windows(before: Tensor, seen: Tensor, first: Tensor) -> Tensor:
    """The stacks [T, B, k, *shape] of rows [T, B, *shape], oldest frame first. before: [B, k - 1, *shape], the frames before
    the first row. first: bool [T, B], True where an observation begins an episode."""
    many, rows = before.shape[1], len(seen)
    run = torch.cat([before.transpose(0, 1), seen])
    gone = torch.zeros_like(first)
    found = [seen]
    for age in range(1, many + 1):
        gone = gone.clone()
        gone[age - 1 :] |= first[: rows - age + 1]  # an episode began less than `age` rows ago
        frame = run[many - age : many - age + rows]
        found.insert(0, frame.masked_fill(gone.view(*gone.shape, *(1,) * (frame.dim() - 2)), 0))
    return torch.stack(found, dim=2)


def framed(batch: Batch) -> Batch:
    """The batch with stacks in the place of single frames, if its trajectories have frames beside them."""
    if FRAMES not in batch.state:
        return batch
    assert isinstance(batch.observation, Tensor)
    assert isinstance(batch.final, Tensor)
    assert batch.first is not None
    state = {name: each for name, each in batch.state.items() if name != FRAMES}
    whole = windows(batch.state[FRAMES], batch.observation, batch.first)
    final = torch.cat([whole.flatten(0, 1)[batch.cut][:, 1:], batch.final[:, None]], dim=1)
    return replace(batch, observation=whole, final=final, state=state, first=batch.first if state else None)
