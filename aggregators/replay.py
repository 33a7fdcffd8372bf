"""Replay: the transitions of trajectories, kept in the learner's memory and drawn from again and again.

The one idea: a trajectory is written into a ring as it came, time first, and a transition is a place in the ring with an offset
to the observation that it bootstraps from, which lies further on. So each observation is kept once, a ring that overwrites
its oldest places never breaks a transition that is left, and drawing a batch is a handful of gathers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shoal.aggregators import State
from shoal.aggregators.n_step import Returns
from shoal.aggregators.ring_replay import RingReplay, Row
from shoal.aggregators.sum_tree import Doubles, Places
from shoal.envs.spaces import apart, final_name
from shoal.nets.framed import FRAMES
from shoal.nets.policies import Seen
from shoal.protocol.layout import DTYPES, Bundle, Layout

Array = npt.NDArray[Any]
SEEN, FINAL, STATE, FIRST = "observation", "final", "state", "first"
OLDER = f"{STATE}/{FRAMES}"  # the frames before a trajectory's first row
MADE = ("reward", "discount", "ahead", "back")  # arrays of the ring that are computed from a trajectory's rewards and flags
Q, BEST = "q", "best"  # rows that actors add: their value of the action taken, and of the best action
AT_ONCE = 32 << 20  # bytes of observations that are gathered at once


@dataclass(frozen=True, slots=True)
class Transitions:
    """N transitions over up to n steps, on the learner's device.

    places: int64 [N], their places in the ring (numpy). seen, following: name -> [N, ...], the observation that was acted on
    and the one to bootstrap from, with all that came beside an observation (a mask of actions, say). action: int64 [N] or
    float32 [N, A]. reward: float32 [N], discounted sum. discount: float32 [N], factor of the following value: gamma^n, or 0
    after termination. weight: float32 [N], factor of each loss, 1 unless priorities decide what is drawn.
    """

    places: Places
    seen: Mapping[str, Tensor]
    following: Mapping[str, Tensor]
    action: Tensor
    reward: Tensor
    discount: Tensor
    weight: Tensor

    @property
    def observation(self) -> Tensor:
        return self.seen[SEEN]

    @property
    def next_observation(self) -> Tensor:
        return self.following[SEEN]

    @property
    def inputs(self) -> Seen:
        """The observations as a network gets them: one array, or part -> array."""
        found: Seen = apart(self.seen)[0]
        return found

    @property
    def next_inputs(self) -> Seen:
        """The observations to bootstrap from, as a network gets them."""
        found: Seen = apart(self.following)[0]
        return found

    def __len__(self) -> int:
        return len(self.places)

    def part(self, first: int, last: int) -> Transitions:
        """The transitions from `first` to before `last`, as views."""
        cut = slice(first, last)
        seen, following = ({name: x[cut] for name, x in each.items()} for each in (self.seen, self.following))
        flat = (self.action[cut], self.reward[cut], self.discount[cut], self.weight[cut])
        return Transitions(self.places[cut], seen, following, *flat)


class ReplayBuffer(RingReplay):
    """The newest transitions of trajectories of one layout: fewer than buffer_size where rows only reset.

    If trajectories have frames beside them (nets/framed.py), each frame is kept once, and a batch has stacks of them.
    """

    ORDER: ClassVar[int] = 4

    def __init__(self, layout: Layout, buffer_size: int, **options: Any) -> None:
        super().__init__(layout, buffer_size, **options)
        self.order = np.zeros(self.capacity, np.int32)  # places that can be drawn, oldest first, from `taken` to `inserted`
        self.taken = 0

    def planned(self, buffer_size: int, beside: Collection[str]) -> tuple[int, dict[str, Row]]:
        layout, (T, B) = self.layout, self.shape
        self.before = layout.by_name[OLDER].shape[1] if OLDER in layout.by_name else 0  # frames in a stack, beside the newest
        lead = self.before * B  # places for the frames before the first row; and rows that lose frames with those before them
        each = lead + (T + 1) * B + (T * B if has_finals(layout) else 0)  # places of one trajectory, at most
        capacity = max(each, -(-buffer_size * (T + 1 + self.before) // T)) + lead
        arrays = {p.name: (p.dtype, p.shape) for p in layout.places if p.name.split("/")[0] not in (FINAL, STATE)}
        self.seen = [name for name, (_, shape) in arrays.items() if shape[:2] == (T + 1, B) and name != FIRST]
        kept = (*self.seen, "action", *beside)
        rows: dict[str, Row] = {name: (DTYPES[dtype], shape[2:]) for name, (dtype, shape) in arrays.items() if name in kept}
        rows |= {"reward": (DTYPES["f4"], ()), "discount": (DTYPES["f4"], ()), "ahead": (DTYPES["i4"], ())}
        rows |= {"back": (DTYPES["i4"], ())} if self.before else {}
        return capacity, rows

    def __len__(self) -> int:
        """The number of transitions that can be drawn."""
        return self.inserted - self.taken

    # Rows in

    def insert(self, bundle: Bundle) -> int:
        """Take a trajectory in, over the oldest places. Returns the number of its transitions. Raises ProtocolError for another
        layout, with nothing taken in."""
        returns, (T, B), mask = self.returns(bundle), self.shape, bundle["mask"]
        ahead, finals = self._ahead(returns.steps, bundle["terminated"], bundle["truncated"], mask)
        lead = self.before * B
        many = lead + (T + 1) * B + len(finals)
        self._make_room(many)
        for name, ring in self.ring.arrays.items():
            if name not in MADE:
                self.ring.write(name, lead, bundle[name].reshape(-1, *ring.shape[1:]))
        for name in self.seen if len(finals) else ():
            last = bundle[final_name(name)] if final_name(name) in bundle else bundle[name][:T]
            self.ring.write(name, lead + (T + 1) * B, last.reshape(T * B, *last.shape[2:])[finals])
        for name, values in (("reward", returns.reward), ("discount", returns.discount), ("ahead", ahead)):
            self.ring.write(name, lead, values.ravel())
        self.ring.write("ahead", lead + T * B, np.zeros(many - lead - T * B, np.int32))  # no action followed these
        if self.before:
            self._write_older(bundle, finals)
        drawable = (self.ring.written + lead + np.flatnonzero(mask)) % self.capacity
        self.order[(self.inserted + np.arange(len(drawable))) % self.capacity] = drawable
        if self.priorities is not None:
            self.priorities.tree.put(self.ring.places(self.ring.written, self.ring.written + many), 0.0)
            self.priorities.tree.put(drawable, self._first(bundle, returns, ahead)[mask])
        self.ring.advance(many)
        self.inserted += len(drawable)
        return len(drawable)

    def _ahead(self, steps: Array, terminated: Array, truncated: Array, mask: Array) -> tuple[Array, Places]:
        """The offset [T, B] from each row's place to that of the observation that it bootstraps from, 0 on a masked row; and
        the rows, of the flattened [T * B], whose last observation lies beside them and gets a place of its own."""
        T, B = self.shape
        ahead = np.where(mask, steps * B, 0)
        if not has_finals(self.layout):
            return ahead, np.zeros(0, np.int64)
        cut = mask & truncated & ~terminated
        finals = np.flatnonzero(cut)
        place = np.zeros((T, B), np.int64)
        place.ravel()[finals] = (T + 1) * B + np.arange(len(finals))
        last = np.arange(T)[:, None] + np.maximum(steps, 1) - 1
        beside = mask & np.take_along_axis(cut, last, axis=0)
        own = np.arange(T * B).reshape(T, B)
        return np.where(beside, np.take_along_axis(place, last, axis=0) - own, ahead), finals

    def _first(self, bundle: Bundle, returns: Returns, ahead: Array) -> Doubles:
        """The numbers p^alpha [T, B] of new rows: the largest so far. If actors say what they believed of their actions (`Q`)
        and of the best one (`BEST`), a row whose return ends before the trajectory does has that of its own error (Horgan et
        al. 2018, section 3)."""
        assert self.priorities is not None
        first = np.full(self.shape, self.priorities.largest)
        if Q not in bundle:
            return first
        at = np.arange(first.size) + ahead.ravel()
        within = (at < first.size) & (ahead.ravel() > 0)
        following = bundle[BEST].ravel()[np.where(within, at, 0)]
        error = self.reward_scale * returns.reward.ravel() + returns.discount.ravel() * following - bundle[Q].ravel()
        known = within | (returns.discount.ravel() == 0)
        first.ravel()[known] = self.priorities.of(error[known])
        return first

    def _write_older(self, bundle: Bundle, finals: Places) -> None:
        """Write the frames before the first row, and for each place the way back to the frame before it: 0 if there is none."""
        (T, B), lead = self.shape, self.before * self.shape[1]
        older = bundle[OLDER].swapaxes(0, 1)
        self.ring.write(SEEN, 0, older.reshape(lead, *older.shape[2:]))
        self.ring.write("ahead", 0, np.zeros(lead, np.int32))
        back = np.full((self.before + T + 1, B), B, np.int32)
        back[0] = 0
        back[self.before :][bundle[FIRST]] = 0
        last = (T + 1) * B + np.arange(len(finals)) - finals  # the row that was cut off lies before its last observation
        self.ring.write("back", 0, np.concatenate([back.ravel(), last.astype(np.int32)]))

    def _make_room(self, places: int) -> None:
        """Let go of the transitions in the next places, and of those behind them whose older frames lie there."""
        lead = self.before * self.shape[1]
        for cut in self.ring.cuts(self.ring.written, min(self.capacity, places + lead)):
            self.taken += int(np.count_nonzero(self.ring["ahead"][cut]))
            self._let_go(cut)

    def _let_go(self, cut: slice) -> None:
        """Draw none of the rows in these places any more."""
        if self.before:
            self.ring["ahead"][cut] = 0
            if self.priorities is not None:
                self.priorities.tree.put(np.arange(cut.start, cut.stop, dtype=np.int64), 0.0)

    # Batches out

    def minibatches(self, rng: np.random.Generator, many: int, size: int, beta: float = 1.0) -> Iterator[Transitions]:
        """Yield `many` batches of `size` transitions, drawn with replacement. With priorities the next batch is drawn when it
        is asked for, by the priorities as they are then; beta: exponent of the importance weights."""
        if self.priorities is not None:
            for _ in range(many):
                places = self.priorities.draw(rng, size)
                weight = self.priorities.weights(places, len(self), beta)
                yield replace(self._gathered(places), weight=torch.from_numpy(weight).to(self.device))
            return
        together = max(1, AT_ONCE // max(1, 2 * size * self.ring.row_bytes))
        for first in range(0, many, together):
            count = min(together, many - first)
            drawn = rng.integers(0, len(self), size=count * size)
            found = self._gathered(self.order[(self.taken + drawn) % self.capacity].astype(np.int64))
            yield from (found.part(k * size, (k + 1) * size) for k in range(count))

    def _gathered(self, places: Places) -> Transitions:
        following = (places + self.ring["ahead"][places]) % self.capacity
        return Transitions(
            places,
            {name: self._stack(name, places) for name in self.seen},
            {name: self._stack(name, following) for name in self.seen},
            self._taken("action", places),
            self._taken("reward", places) * self.reward_scale,
            self._taken("discount", places),
            torch.ones(len(places), device=self.device),
        )

    def _taken(self, name: str, places: Places) -> Tensor:
        return torch.from_numpy(self.ring[name].take(places, axis=0)).to(self.device)

    def _stack(self, name: str, places: Places) -> Tensor:
        """The observations in these places, [N, *shape]; with frames, stacks of them, oldest first, [N, k, *shape]."""
        newest = self._taken(name, places)
        if not self.before:
            return newest
        found, there = [newest], np.ones(len(places), dtype=bool)
        for _ in range(self.before):
            back = self.ring["back"][places]
            there, places = there & (back > 0), (places - back) % self.capacity
            frame = self._taken(name, places)
            frame[torch.from_numpy(~there).to(self.device)] = 0
            found.insert(0, frame)
        return torch.stack(found, dim=1)

    def load(self, state: State) -> None:
        """Go on from a snapshot's arrays, with another buffer_size too. Raises UserError if rows are not there or do not
        fit."""
        self.ring.load(state)
        if self.before and self.first:  # the rows behind those that were overwritten have lost older frames
            for cut in self.ring.cuts(self.first, self.before * self.shape[1]):
                self.ring["ahead"][cut] = 0
        (self.inserted,) = (int(n) for n in state["replay/inserted"])
        live = self.ring.places(self.first, self.ring.written)
        drawable = live[self.ring["ahead"][live] > 0]
        self.taken = self.inserted - len(drawable)
        self.order[(self.taken + np.arange(len(drawable))) % self.capacity] = drawable
        if self.priorities is not None:
            self.priorities.load(state, live, drawable)


def has_finals(layout: Layout) -> bool:
    """True if the last observations of truncated episodes lie beside their rows (Spaces.finals)."""
    return any(name.split("/")[0] == FINAL for name in layout.by_name)
