"""Observations and rewards scaled by running statistics that are part of the published weights.

The one idea: the statistics are buffers of the module, so everything that has the weights (an actor, an evaluation, an export,
a resumed run) scales by the same numbers as the learner. Actors send the moments of their trajectories, and the learner merges
them after it has scaled the trajectories by the statistics that it had published. So a ratio of probabilities is 1 where
nothing is stale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from shoal.envs.spaces import Array, Floats, Kept, Spaces
from shoal.nets.acting import Acted, Around, Form, InParts, Network, Parted, Policy, State
from shoal.nets.moments import Moments, kept
from shoal.nets.pictures import deep
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Words

if TYPE_CHECKING:
    from torch import nn

EPSILON = 1e-8  # added to a variance, as in Stable-Baselines3's VecNormalize
PART = "normal"  # the name of the module's part that holds the statistics
SEEN, PAID = "observation_", "reward_"  # begin the names of the statistics of observations, and of discounted returns


def scale_of(moments: Moments) -> tuple[Floats, Floats]:
    """The float32 arrays (mean, 1 / standard deviation) that numbers with these moments are scaled by."""
    return moments.mean.astype(np.float32), (1.0 / np.sqrt(moments.variance + EPSILON)).astype(np.float32)


def kept_of(moments: Sequence[str], spaces: Spaces) -> Kept:
    """The statistics that a trajectory brings: name -> (dtype, shape). moments: SEEN, PAID, both or none."""
    shapes = {SEEN: next(iter(spaces.arrays.values()))[1], PAID: ()}
    return {name: its for one in moments for name, its in kept(one, shapes[one]).items()}


class Scaling(InParts, Around):
    """A policy whose observations are scaled by the statistics in its weights, around a policy in numpy. clip: largest absolute
    value of a scaled observation."""

    inner: Parted

    def __init__(self, inner: Parted, clip: float) -> None:
        super().__init__(inner)
        self.clip = np.float32(clip)
        self._mean: Any = np.float32(0)
        self._scale: Any = np.float32(1)

    def load(self, weights: Bundle) -> None:
        self._mean, self._scale = scale_of(Moments.read(weights, f"{PART}.{SEEN}"))
        self.inner.load(weights)

    @property
    def width(self) -> int:
        return self.inner.width

    def numbers(self, seen: Array, state: State) -> tuple[Floats, State]:
        scaled = np.subtract(seen, self._mean, dtype=np.float32)
        scaled *= self._scale
        np.clip(scaled, -self.clip, self.clip, out=scaled)
        return self.inner.numbers(scaled, state)

    def chosen(self, numbers: Floats, seen: Array, state: State, noise: Array | None, words: Words) -> Acted:
        return self.inner.chosen(numbers, seen, state, noise, words)


@dataclass(frozen=True)
class Normalised:
    """A kind of network whose modules hold running statistics. inner: the kind without them. observation: the module scales its
    observations. reward: the module keeps the statistics by which the learner scales rewards. clip: largest absolute value of
    a scaled observation."""

    inner: Network
    observation: bool
    reward: bool
    clip: float

    @property
    def remembers(self) -> bool:
        return self.inner.remembers

    def build(self, spaces: Spaces, form: Form, seed: int) -> nn.Module:
        return self._with(self.inner.build(spaces, form, seed), spaces)

    def fitting(self, module: nn.Module, spaces: Spaces) -> nn.Module:
        return self._with(self.inner.fitting(module, spaces), spaces)

    def policy(self, spaces: Spaces, form: Form, module: nn.Module | None) -> Policy:
        if module is None and deep(spaces, form.pictures):
            module = self.build(spaces, form, 0)  # a policy in torch reads all of the weights, with these statistics
        policy = self.inner.policy(spaces, form, module)
        if module is not None or not self.observation:
            return policy  # a module of the user's scales by itself
        return Scaling(cast(Parted, policy), self.clip)

    def _with(self, module: nn.Module, spaces: Spaces) -> nn.Module:
        from shoal.nets.normal_module import attached

        (_, (dtype, shape)), *others = spaces.arrays.items()
        if self.observation and (others or not spaces.plain):
            raise UserError(
                "norm_obs=true: observations of several parts, or with action masks, are not scaled; norm_obs=false"
            )
        if self.observation and dtype != "f4":
            raise UserError("norm_obs=true: the observations are pictures, whose bytes are scaled to [0, 1]; norm_obs=false")
        shapes = {SEEN: shape} if self.observation else {}
        return attached(module, {**shapes, **({PAID: ()} if self.reward else {})}, self.clip)
