"""Trajectories on their way to the device.

The one idea: a trajectory is one run of bytes, so taking it in is one copy into a slot of page-locked memory and one copy
from there to the device. The second copy starts at once, on a stream of its own, while other actors act. Slots are reused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from shoal.envs.spaces import LIFE, MASK, MOMENTS, OBSERVATION, STATE, final_name
from shoal.nets.flat import as_tensor, views
from shoal.nets.policies import Seen, every
from shoal.protocol.errors import ProtocolError
from shoal.protocol.layout import Layout
from shoal.protocol.work import Contribution

EVERY = ("action", "reward", "terminated", "mask")
KNOWN = (*EVERY, OBSERVATION, MASK, LIFE, "truncated", "final", "first")
Statistics: TypeAlias = Mapping[str, Any]
"""The statistics of one trajectory, without `moments/` before their names: name -> float64 array."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Trajectories side by side along B, on the device. Spaces.trajectory (envs/spaces.py) says what each array means.

    lag: float32 [B], versions between the weights that each environment's rows were made from and the weights that learn from
    them. A trajectory has one version: weights never change within a rollout.
    rows: int64, the indexes where mask is True in the flattened [T * B]; found on the host, without asking the device.
    cut, final: int64 [n], the indexes of truncated rows that the next row does not bootstrap, and [n, *obs], the observations
    that do (Spaces.finals). n is 0 if there are none.
    added: the policy's own rows, by name. state, first: of a policy with memory, its state before the first row, by name, and
    whether an observation begins an episode; empty and None without memory.
    """

    observation: Seen  # [T + 1, B, *obs]; of several parts, or with "action_mask": by the names of Spaces.arrays
    action: Tensor  # int64 [T, B] or [T, B, K], bool [T, B, n], or float32 [T, B, A]
    reward: Tensor  # float32 [T, B]
    terminated: Tensor  # bool [T, B]
    mask: Tensor  # bool [T, B]
    lag: Tensor
    rows: Tensor
    cut: Tensor
    final: Seen
    added: Mapping[str, Tensor]  # [T, B, ...]
    state: Mapping[str, Tensor]  # [B, ...]
    first: Tensor | None  # bool [T + 1, B]

    @property
    def log_prob(self) -> Tensor:
        """float32 [T, B], of the actions under the policy that acted."""
        return self.added["log_prob"]

    def part(self, first: int, last: int) -> Batch:
        """The environments from `first` up to `last`, without `last`, as a batch of their own."""
        at, envs = slice(first, last), self.mask.shape[1]
        mask, env = self.mask[:, at], self.cut % envs
        ours = (env >= first) & (env < last)
        return replace(
            self,
            observation=every(self.observation, lambda x: x[:, at]),
            **{name: getattr(self, name)[:, at] for name in EVERY},
            lag=self.lag[at],
            rows=mask.flatten().nonzero().squeeze(1),
            cut=(self.cut // envs * (last - first) + env - first)[ours],
            final=every(self.final, lambda x: x[ours]) if len(self.cut) else self.final,
            added={name: each[:, at] for name, each in self.added.items()},
            state={name: each[at] for name, each in self.state.items()},
            first=None if self.first is None else self.first[:, at],
        )


class Slot:
    """The memory of one trajectory: `host`, where bytes arrive, and `device`, where they are used. On a CPU both are one."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.host = torch.empty(layout.nbytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self.device = self.host if device.type == "cpu" else torch.empty_like(self.host, device=device)
        self.arrays = views(self.device, layout)
        own = {name: view.numpy() for name, view in views(self.host, layout).items()}
        self.flags = {name: view for name, view in own.items() if view.dtype == np.bool_}
        self.moments = {name.removeprefix(MOMENTS): view for name, view in own.items() if name.startswith(MOMENTS)}


class Staging:
    """The trajectories that were folded in since the last batch.

    The user of a batch must wait for the device (by reading metrics, say) before the next `fold`, because slots are reused.
    prepared: makes the batch that is learned from, of the batch as it came and the statistics of its trajectories, in their
    order.
    """

    def __init__(
        self,
        device: torch.device | str,
        prepared: Callable[[Batch, Sequence[Statistics]], Batch] = lambda batch, statistics: batch,
    ) -> None:
        self.device, self.prepared = torch.device(device), prepared
        self.layout: Layout | None = None
        self.slots: list[Slot] = []
        self.keys: list[tuple[tuple[int, ...], int, int, int]] = []
        self.lags: list[int] = []
        self.copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def fold(self, contribution: Contribution) -> None:
        """Copy a trajectory to page-locked memory and start its copy to the device. Raises ProtocolError for another layout."""
        bundle = contribution.bundle
        self.layout = self.layout or bundle.layout
        if difference := self.layout.difference(bundle.layout):
            raise ProtocolError(f"a trajectory must have the layout of the run's first one: {difference}")
        if len(self.keys) == len(self.slots):
            self.slots.append(Slot(self.layout, self.device))
        slot = self.slots[len(self.keys)]
        slot.host.copy_(as_tensor(bundle.data))
        if slot.device is not slot.host:
            with torch.cuda.stream(self.copies) if self.copies else contextlib.nullcontext():
                slot.device.copy_(slot.host, non_blocking=True)
        task = contribution.task
        self.keys.append((task.clients, contribution.made_from, task.version, task.index))
        self.lags.append(contribution.lag)

    def batch(self) -> Batch:
        """Return the folded trajectories, and forget them. Ordered by client, version, task: the order of arrival changes no
        bit."""
        if not self.keys:
            raise ValueError("a step needs at least one trajectory; fold one in first")
        order = sorted(range(len(self.keys)), key=self.keys.__getitem__)
        folded, lags = [self.slots[i] for i in order], [float(self.lags[i]) for i in order]
        self.clear()
        if self.copies:
            torch.cuda.current_stream(self.device).wait_stream(self.copies)
        mask, terminated, truncated = (
            np.concatenate([slot.flags[name] for slot in folded], axis=1) for name in ("mask", "terminated", "truncated")
        )
        seen = [name for name in folded[0].arrays if name.split("/")[0] == OBSERVATION or name == MASK]
        finals = final_name(seen[0]) in folded[0].arrays
        rows, cut = (
            torch.from_numpy(np.flatnonzero(x)).to(self.device) for x in (mask, mask & truncated & ~terminated & finals)
        )
        arrays = {name: torch.cat([slot.arrays[name] for slot in folded], dim=1) for name in (*EVERY, *seen)}
        added = {
            name: torch.cat([slot.arrays[name] for slot in folded], dim=1)
            for name in folded[0].arrays
            if name.split("/")[0] not in KNOWN and not name.startswith((STATE, MOMENTS))
        }
        state = {
            name.removeprefix(STATE): torch.cat([slot.arrays[name] for slot in folded])
            for name in folded[0].arrays
            if name.startswith(STATE)
        }
        first = torch.cat([slot.arrays["first"] for slot in folded], dim=1) if state else None
        last = {
            name: torch.cat([slot.arrays[final_name(name)] for slot in folded], dim=1) if len(cut) else arrays[name]
            for name in seen
        }
        final = {name: array.flatten(0, 1)[cut] for name, array in last.items()}
        observation = {name: arrays.pop(name) for name in seen}
        lag = torch.tensor(lags, device=self.device).repeat_interleave(mask.shape[1] // len(folded))
        if self.copies:
            self.copies.wait_stream(torch.cuda.current_stream(self.device))  # the next copies overwrite these slots
        at_last, everything = (one[OBSERVATION] if seen == [OBSERVATION] else one for one in (final, observation))
        batch = Batch(everything, **arrays, lag=lag, rows=rows, cut=cut, final=at_last, added=added, state=state, first=first)
        return self.prepared(batch, [slot.moments for slot in folded])

    def clear(self) -> None:
        self.keys.clear()
        self.lags.clear()
