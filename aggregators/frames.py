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
    (rows, envs), many, device = seen.shape[:2], before.shape[1], seen.device
    zeros = seen.new_zeros(1, *seen.shape[2:])
    run = torch.cat([torch.cat([before.transpose(0, 1), seen]).flatten(0, 1), zeros])  # [(many + T) * B + 1, *shape]
    at = torch.arange(rows, device=device)[:, None]
    begun = torch.where(first, at, -many).cummax(0).values  # the row at which an episode began; -many: before all of these
    row = at[..., None] - torch.arange(many, -1, -1, device=device)  # [T, 1, k]
    place = (row + many) * envs + torch.arange(envs, device=device)[:, None]
    place = torch.where(row < begun[..., None], len(run) - 1, place)
    return run.index_select(0, place.flatten()).view(rows, envs, many + 1, *seen.shape[2:])


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
