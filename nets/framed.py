"""Policies that see the last frames together, of an environment that shows one at a time.

The one idea: the frames before the newest are a policy's memory. So a rollout carries them from step to step and forgets them
where an episode begins, and a trajectory holds each frame once, with those before its first row beside it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np

from shoal.envs.spaces import Array, Floats, Kept, Observations, Spaces
from shoal.nets.acting import Acted, Around, Bools, Parted, Policy, State, forgotten
from shoal.protocol.errors import UserError
from shoal.protocol.layout import DTYPES
from shoal.protocol.work import Words

FRAMES = "frames"  # name of the memory: the frames before the newest, oldest first, [B, k - 1, *shape]


def stacked_spaces(spaces: Spaces, frames: int) -> Spaces:
    """The spaces as a network sees them: `frames` observations one after the other, oldest first, [frames, *shape]. Raises
    UserError, one line, for observations of several parts, of categories, or with masks."""
    if frames == 1:
        return spaces
    seen = spaces.observation
    if not isinstance(seen, Observations) or seen.categories or spaces.masks:
        what = "action masks beside it" if spaces.masks else "several parts or whole numbers"
        raise UserError(f"frame_stack={frames}: stacks one array of numbers, and the observation has {what}; frame_stack=1")
    return replace(spaces, observation=replace(seen, shape=(frames, *seen.shape)))


class Framed(Around):
    """Another policy, which gets the last `frames` observations [B, frames, *shape]. Frames before an episode's beginning are
    zeros. It is a Parted policy if the other one is."""

    def __init__(self, policy: Policy, frames: int, seen: Observations) -> None:
        super().__init__(policy)
        self.frames, self.seen = frames, seen

    @property
    def memory(self) -> Kept:
        return {**self.inner.memory, FRAMES: (self.seen.dtype, (self.frames - 1, *self.seen.shape))}

    def begin(self, num_envs: int) -> State:
        frames = np.zeros((num_envs, self.frames - 1, *self.seen.shape), DTYPES[self.seen.dtype])
        return {**self.inner.begin(num_envs), FRAMES: frames}

    @property
    def width(self) -> int:
        return cast(Parted, self.inner).width

    def act(self, seen: Array, first: Bools, state: State, noise: Array | None, words: Words) -> Acted:
        whole = self._whole(seen, forgotten({FRAMES: state[FRAMES]}, first))
        acted = self.inner.act(whole, first, _without_frames(state), noise, words)
        return acted._replace(state={**acted.state, FRAMES: whole[:, 1:]})

    def numbers(self, seen: Array, state: State) -> tuple[Floats, State]:
        whole = self._whole(seen, state)
        numbers, after = cast(Parted, self.inner).numbers(whole, _without_frames(state))
        return numbers, {**after, FRAMES: whole[:, 1:]}

    def chosen(self, numbers: Floats, seen: Array, state: State, noise: Array | None, words: Words) -> Acted:
        acted = cast(Parted, self.inner).chosen(numbers, seen, _without_frames(state), noise, words)
        return acted._replace(state={**acted.state, FRAMES: state[FRAMES]})

    def _whole(self, seen: Array, state: State) -> Array:
        """The stacks [B, frames, *shape], oldest frame first."""
        return np.concatenate([state[FRAMES], seen[:, None]], axis=1)


def _without_frames(state: State) -> State:
    return {name: array for name, array in state.items() if name != FRAMES}
