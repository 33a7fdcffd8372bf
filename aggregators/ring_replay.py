"""The part that replays share: rows of trajectories of one layout in a ring, with returns and priorities.

The one idea: what a place of the ring holds is said by the subclass, a transition or a sequence; all else about a ring is here.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from shoal.aggregators import State
from shoal.aggregators.n_step import Returns, n_step
from shoal.aggregators.priorities import Priorities
from shoal.aggregators.row_ring import RowRing, row_bytes
from shoal.aggregators.sum_tree import Places
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.memory import room

Row: TypeAlias = tuple[Any, tuple[int, ...]]
"""An array of a row: its dtype and its shape."""


class RingReplay:
    """The half that replays share: rows in a ring, their returns and priorities, and their snapshots.

    layout: of the trajectories (Spaces.trajectory). buffer_size: rows to learn from that are kept, at least one trajectory's.
    n_step, gamma: a return sums up to n_step rewards with discount gamma (n_step.py), times reward_scale. max_reward: largest
    absolute value of a reward in these sums; a larger one counts as that (0: no bound). prioritized: False draws uniformly;
    alpha: exponent of the priorities. beside: names of arrays [T, B, ...] that are kept beside the action. device: where
    batches go.
    inserted: rows to learn from that ever came. nbytes: bytes of memory when the ring is full; pages are touched as it fills.

    Raises UserError if the buffer is smaller than a trajectory, or larger than the memory that can be had.
    """

    ORDER: ClassVar[int] = 0
    """Bytes that a place of the ring takes beside its row and its priority."""

    def __init__(
        self,
        layout: Layout,
        buffer_size: int,
        *,
        n_step: int = 1,
        gamma: float = 0.99,
        max_reward: float = 0.0,
        reward_scale: float = 1.0,
        prioritized: bool = False,
        alpha: float = 0.6,
        beside: Collection[str] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        self.layout, self.device = layout, torch.device(device)
        self.n_step, self.gamma = n_step, gamma
        self.max_reward, self.reward_scale = max_reward, reward_scale
        T, B = self.shape = layout.by_name["reward"].shape
        if buffer_size < T * B:
            raise UserError(
                f"buffer_size={buffer_size}: must hold one trajectory, rollout_length x num_envs = {T} x {B} = {T * B} rows"
            )
        self.capacity, rows = self.planned(buffer_size, beside)
        self.nbytes = self.capacity * (row_bytes(rows) + self.ORDER + (9 if prioritized else 0))
        fits(self.nbytes, buffer_size)
        self.ring = RowRing(self.capacity, rows)
        self.priorities = Priorities(self.capacity, alpha) if prioritized else None
        self.inserted = 0

    def planned(self, buffer_size: int, beside: Collection[str]) -> tuple[int, dict[str, Row]]:
        """The places of the ring, and the arrays of a row: name -> (dtype, shape)."""
        raise NotImplementedError

    def returns(self, bundle: Bundle) -> Returns:
        """The returns of a trajectory. Raises ProtocolError for one of another layout."""
        if difference := self.layout.difference(bundle.layout):
            raise ProtocolError(f"a trajectory must have the layout of the run's first one: {difference}")
        flags = (bundle["terminated"], bundle["truncated"], bundle["mask"])
        reward = bundle["reward"]
        if self.max_reward:
            reward = np.clip(reward, -self.max_reward, self.max_reward)
        return n_step(reward, *flags, self.n_step, self.gamma)

    def prioritize(self, places: Places, errors: Tensor) -> None:
        """Set the priorities of a batch from its errors [N]. Without priorities this does nothing."""
        if self.priorities is not None:
            self.priorities.put(places, errors.detach().cpu().numpy())

    # Snapshots

    def settle(self, folder: Path) -> None:
        """Keep the rows of a large replay in files of this folder, from the next snapshot on."""
        self.ring.settle(folder)

    @property
    def first(self) -> int:
        """The number of the oldest row in the ring, counted from the run's beginning."""
        return self.ring.first

    def forget(self, first: int) -> None:
        """Unlink files without a row from `first` on, which no snapshot that is kept needs."""
        self.ring.kept.forget(first)

    def state(self) -> State:
        """The arrays for a snapshot. Raises OSError."""
        told = {"replay/inserted": np.array([self.inserted], np.int64), **self.ring.state()}
        if self.priorities is None:
            return told
        return {**told, **self.priorities.state(self.ring.places(self.first, self.ring.written))}


def fits(nbytes: int, buffer_size: int) -> None:
    """Raises UserError, one line, if a replay of so many bytes is more than the memory that can be had."""
    have = room()
    if nbytes > have.nbytes:
        less = int(buffer_size * 0.8 * have.nbytes / nbytes)
        raise UserError(
            f"buffer_size={buffer_size}: the replay would take {nbytes / 1e9:,.1f} GB of memory, and this {have.bound} has "
            f"{have.nbytes / 1e9:,.1f} GB left: buffer_size={less} takes 80 % of that"
        )
