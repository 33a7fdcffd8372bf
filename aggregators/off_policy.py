"""The frame of off-policy learners: trajectories go into a replay, and gradient steps are made on batches that are drawn from
it.

The one idea: gradient steps follow environment steps at a ratio that is kept exactly (a rate limiter): what a version may not
spend yet is carried over as a fraction. Draws are keyed by (seed, version), and trajectories enter the replay when a step is
made, in the order of clients and tasks. So a run's bits follow from which trajectories made which version, which a journal
says.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from shoal.aggregators import State
from shoal.aggregators.replay import ReplayBuffer, Transitions
from shoal.aggregators.sum_tree import Places
from shoal.protocol import draws
from shoal.protocol.errors import ProtocolError
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.work import Contribution, Moved

FINEST = 10**6  # the largest denominator of a ratio


class Buffer(Protocol):
    """A replay: ReplayBuffer of transitions, or SequenceBuffer."""

    nbytes: int

    @property
    def first(self) -> int: ...

    def __len__(self) -> int: ...

    def insert(self, bundle: Bundle) -> int: ...

    def minibatches(self, rng: np.random.Generator, many: int, size: int, beta: float = 1.0) -> Iterator[Any]: ...

    def prioritize(self, places: Places, errors: Tensor) -> None: ...

    def settle(self, folder: Path) -> None: ...

    def forget(self, first: int) -> None: ...

    def state(self) -> State: ...

    def load(self, state: State) -> None: ...


@dataclass(kw_only=True, eq=False, repr=False)
class OffPolicyLearner:
    """An aggregator of trajectories that learns from a replay. A subclass has networks, and gives METRICS, `weights`, `update`,
    `networks` and `load_networks`.

    layout: of the trajectories. buffer_size: transitions in the replay. replay_ratio: gradient steps for each transition that
    comes after the first `learning_starts`. batch_size: transitions of a gradient step. n_step: rewards of a transition.
    max_reward: largest absolute value of a reward, before n_step and reward_scale; a larger one counts as that (0: no bound).
    reward_scale: factor of rewards. replay: "uniform" or "prioritized", with exponents priority_alpha and priority_beta, which
    grows linearly to 1 at total_timesteps. steps: transitions that came. updates: gradient steps made. version: number of
    `step` calls.
    """

    linear: ClassVar[bool] = False
    METRICS: ClassVar[tuple[str, ...]] = ()
    BESIDE: ClassVar[tuple[str, ...]] = ()
    """Arrays of a trajectory that stay in the replay beside the action."""

    layout: Layout
    seed: int = 0
    device: torch.device | str = "cpu"
    gamma: float = 0.99
    n_step: int = 1
    buffer_size: int = 100_000
    batch_size: int = 256
    replay_ratio: float = 1.0
    learning_starts: int = 1_000
    max_reward: float = 0.0
    reward_scale: float = 1.0
    replay: str = "uniform"
    priority_alpha: float = 0.6
    priority_beta: float = 0.4
    total_timesteps: int | None = None

    def __post_init__(self) -> None:
        self.buffer = self.made_buffer()
        self.ratio = Fraction(str(self.replay_ratio)).limit_denominator(FINEST)
        self.owed = Fraction(0)  # gradient steps that may be made by now
        self.steps = self.updates = self.version = 0
        self._came: list[tuple[tuple[tuple[int, ...], int, int, int], Bundle]] = []
        self._lowest: dict[int, int] = {}  # version of a snapshot -> first row of the replay that it needs

    @property
    def replay_bytes(self) -> int:
        """Bytes of memory that the replay takes when it is full."""
        return self.buffer.nbytes

    # For subclasses

    def made_buffer(self) -> Buffer:
        """The replay of the run."""
        return ReplayBuffer(self.layout, self.buffer_size, **self.drawing(), beside=self.BESIDE, device=self.device)

    def drawing(self) -> dict[str, Any]:
        """The settings of a replay: what a transition adds up, and how transitions are drawn."""
        return {
            "n_step": self.n_step,
            "gamma": self.gamma,
            "max_reward": self.max_reward,
            "reward_scale": self.reward_scale,
            "prioritized": self.replay == "prioritized",
            "alpha": self.priority_alpha,
        }

    @abstractmethod
    def update(self, batch: Transitions) -> Sequence[Tensor]:
        """Make gradient step number `updates` on a batch. Returns a number for each of METRICS, detached, still on the
        device."""

    @abstractmethod
    def networks(self) -> State:
        """The arrays of all networks and optimizers, for a snapshot."""

    @abstractmethod
    def load_networks(self, weights: Bundle, state: State) -> None:
        """Go on from the arrays that `networks` gave, and from the weights that were published."""

    @abstractmethod
    def weights(self) -> Bundle: ...

    # The aggregator

    def fold(self, contribution: Contribution) -> None:
        """Put a trajectory aside until the step. Raises ProtocolError for another layout."""
        if difference := self.layout.difference(contribution.bundle.layout):
            raise ProtocolError(f"a trajectory must have the layout of the run's first one: {difference}")
        task = contribution.task
        key = (task.clients, contribution.made_from, task.version, task.index)
        self._came.append((key, contribution.bundle.copy()))

    def step(self) -> Moved:
        """Take in everything folded, and make the gradient steps that are due. None may be due: then the weights stay."""
        before = self.steps
        for _, bundle in sorted(self._came, key=lambda each: each[0]):
            self.steps += self.buffer.insert(bundle)
        self._came = []
        self.owed += self.ratio * (max(self.steps, self.learning_starts) - max(before, self.learning_starts))
        many = int(self.owed) if len(self.buffer) else 0
        self.owed -= many
        rng = np.random.Generator(np.random.Philox(key=draws.key(self.seed, "replay", self.version)))
        self.version += 1
        told: list[Tensor] = []
        for batch in self.buffer.minibatches(rng, many, self.batch_size, self._beta()):
            told.append(torch.stack([x.float() for x in self.update(batch)]))
            self.updates += 1
        about = {"replay_rows": float(len(self.buffer)), "updates": float(self.updates)}
        if not told:
            return Moved(about, weights=False)
        means = torch.stack(told).mean(0).tolist()  # one transfer, which waits for the device
        return Moved({**dict(zip(self.METRICS, means, strict=True)), **about})

    def _beta(self) -> float:
        share = min(1.0, self.steps / self.total_timesteps) if self.total_timesteps else 0.0
        return self.priority_beta + (1.0 - self.priority_beta) * share

    def settle(self, folder: Path) -> None:
        """Keep a large replay in the folder `replay` beside this one."""
        self.buffer.settle(folder.with_name("replay"))

    def forget(self, version: int) -> None:
        """Forget what no snapshot from `version` on can need."""
        past = [kept for kept in self._lowest if kept <= version]
        if past:
            self.buffer.forget(self._lowest[max(past)])
            self._lowest = {kept: first for kept, first in self._lowest.items() if kept >= max(past)}

    def state(self) -> State:
        counters = [self.version, self.steps, self.updates, self.owed.numerator, self.owed.denominator]
        state = {**self.networks(), "counters": np.array(counters, np.int64), **self.buffer.state()}
        self._lowest[self.version] = self.buffer.first
        return state

    def load(self, weights: Bundle, state: State) -> None:
        self._came = []
        self.version, self.steps, self.updates, *owed = (int(n) for n in state["counters"])
        self.owed = Fraction(*owed)
        self.load_networks(weights, state)
        self.buffer.load(state)
        self._lowest = {self.version: self.buffer.first}
