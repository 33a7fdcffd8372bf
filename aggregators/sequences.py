"""Replay of sequences: the rollouts of single environments, with the recurrent state in which each began.

The one idea: a sequence is what one environment did in one trajectory, so it is drawn as it was acted: from the state that the
actor had, through rows in their order, over the ends of episodes. Its priority mixes its largest error with its mean one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shoal.aggregators import State
from shoal.aggregators.replay import FINAL, STATE, Array
from shoal.aggregators.ring_replay import RingReplay, Row
from shoal.aggregators.sum_tree import Places
from shoal.envs.spaces import final_name
from shoal.protocol.layout import DTYPES, Bundle


@dataclass(frozen=True, slots=True)
class Sequences:
    """N sequences of T rows, on the learner's device, time first.

    places: int64 [N] (numpy). seen: name -> [T + 1, N, ...], the observations, with all that came beside them (a mask of
    actions, say). first: bool [T + 1, N], True where an observation begins an episode. state: name -> [N, ...], before the
    first row. action: int64 [T, N]. reward, discount: float32 [T, N], of the n-step return that begins in a row. ahead: int64
    [T, N], rows to the observation that it bootstraps from. mask: bool [T, N]. cut: bool [T, N], True where a return ends with
    a truncated row whose last observation is in `final`, name -> [T, N, ...], at that row; final is empty if rows always hold
    it. weight: float32 [N].
    """

    places: Places
    seen: Mapping[str, Tensor]
    first: Tensor
    state: Mapping[str, Tensor]
    action: Tensor
    reward: Tensor
    discount: Tensor
    ahead: Tensor
    mask: Tensor
    cut: Tensor
    final: Mapping[str, Tensor]
    weight: Tensor


class SequenceBuffer(RingReplay):
    """The newest sequences of trajectories of one layout, which has `first` and states (Spaces.trajectory).

    A place of the ring is a sequence. The arguments are those of RingReplay.
    """

    def planned(self, buffer_size: int, beside: Collection[str]) -> tuple[int, dict[str, Row]]:
        layout, (T, B) = self.layout, self.shape
        self.states = [place.name for place in layout.places if place.name.startswith(f"{STATE}/")]
        rows: dict[str, Row] = {
            name: (DTYPES[layout.by_name[name].dtype], layout.by_name[name].shape[1:]) for name in self.states
        }
        long = [p.name for p in layout.places if p.shape[:2] == (T + 1, B) and p.name not in self.states]
        self.seen = [name for name in long if name != "first" and name.split("/")[0] != FINAL]
        self.finals = {name: final_name(name) for name in self.seen if final_name(name) in layout.by_name}
        for name in (*self.seen, "first", "action", "mask", *self.finals.values()):
            place = layout.by_name[name]
            rows[name] = DTYPES[place.dtype], (place.shape[0], *place.shape[2:])
        rows |= {
            name: (DTYPES[dtype], (T,))
            for name, dtype in (("reward", "f4"), ("discount", "f4"), ("ahead", "i4"), ("cut", "b1"))
        }
        return -(-buffer_size // T), rows

    def __len__(self) -> int:
        """The number of sequences that can be drawn."""
        return self.ring.written - self.ring.first

    def insert(self, bundle: Bundle) -> int:
        """Take a trajectory in, over the oldest sequences. Returns the number of its rows to learn from. Raises ProtocolError
        for another layout, with nothing taken in."""
        returns, (T, B), mask = self.returns(bundle), self.shape, bundle["mask"]
        last = np.arange(T)[:, None] + np.maximum(returns.steps, 1) - 1
        beside = bundle["truncated"] & ~bundle["terminated"] & bool(self.finals)
        made = {"reward": returns.reward, "discount": returns.discount, "ahead": returns.steps}
        made["cut"] = mask & np.take_along_axis(beside, last, axis=0)
        for name in self.ring.arrays:
            array = made[name] if name in made else bundle[name]
            self.ring.write(name, 0, array if name in self.states else array.swapaxes(0, 1))
        if self.priorities is not None:
            self.priorities.tree.put(self.ring.places(self.ring.written, self.ring.written + B), self.priorities.largest)
        self.ring.advance(B)
        many = int(np.count_nonzero(mask))
        self.inserted += many
        return many

    def minibatches(self, rng: np.random.Generator, many: int, size: int, beta: float = 1.0) -> Iterator[Sequences]:
        """Yield `many` batches of `size` sequences, drawn with replacement, each when it is asked for."""
        for _ in range(many):
            if self.priorities is None:
                places = (self.ring.first + rng.integers(0, len(self), size=size)) % self.capacity
                yield self._gathered(places, np.ones(size, np.float32))
            else:
                places = self.priorities.draw(rng, size)
                yield self._gathered(places, self.priorities.weights(places, len(self), beta))

    def _gathered(self, places: Places, weight: Array) -> Sequences:
        def rows(name: str) -> Tensor:
            drawn = self.ring[name].take(places, axis=0).swapaxes(0, 1)
            return torch.from_numpy(np.ascontiguousarray(drawn)).to(self.device)

        state = {name.removeprefix(f"{STATE}/"): torch.from_numpy(self.ring[name].take(places, axis=0)) for name in self.states}
        return Sequences(
            places,
            {name: rows(name) for name in self.seen},
            rows("first"),
            {name: each.to(self.device) for name, each in state.items()},
            rows("action"),
            rows("reward") * self.reward_scale,
            rows("discount"),
            rows("ahead").long(),
            rows("mask"),
            rows("cut"),
            {name: rows(final) for name, final in self.finals.items()},
            torch.from_numpy(weight).to(self.device),
        )

    def load(self, state: State) -> None:
        self.ring.load(state)
        (self.inserted,) = (int(n) for n in state["replay/inserted"])
        if self.priorities is not None:
            live = self.ring.places(self.first, self.ring.written)
            self.priorities.load(state, live, live)
