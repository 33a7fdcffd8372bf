"""Random trajectories with terminations and truncations inside, and their episodes told one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from shoal.envs.spaces import Box, Discrete, Kept, Observations, Spaces
from shoal.nets.policies import Parameters, log_prob
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Task, Work

GAMMA = 0.9
LOG_PROB: Kept = {"log_prob": ("f4", ())}


class Trajectory(NamedTuple):
    reward: Tensor  # float64 [T, B]
    terminated: Tensor  # bool [T, B]
    truncated: Tensor
    mask: Tensor
    value: Tensor  # float64 [T + 1, B]
    rho: Tensor  # float64 [T, B]

    @property
    def discount(self) -> Tensor:
        return GAMMA * (1 - self.terminated.double())


class Piece(NamedTuple):
    """The rows first..last of one environment that belong to one episode, and the value of what follows the last of them."""

    env: int
    first: int
    last: int
    bootstrap: float


def random_trajectory(seed: int, rows: int = 23, envs: int = 9, on_policy: bool = False) -> Trajectory:
    """A truncated row is always followed by one that only resets, or by the end; a terminated row sometimes is."""
    rng = np.random.default_rng(seed)
    terminated = np.zeros((rows, envs), bool)
    truncated = np.zeros((rows, envs), bool)
    mask = np.ones((rows, envs), bool)
    for b in range(envs):
        resets = bool(rng.integers(2))  # the trajectory may begin with a row that only resets
        for t in range(rows):
            mask[t, b] = not resets
            ends = 0 if resets else int(rng.choice(3, p=[0.7, 0.15, 0.15]))
            terminated[t, b], truncated[t, b] = ends == 1, ends == 2
            resets = ends == 2 or (ends == 1 and bool(rng.integers(2)))
    rho = np.ones((rows, envs)) if on_policy else np.exp(rng.normal(size=(rows, envs)))
    reward, value = rng.normal(size=(rows, envs)), rng.normal(size=(rows + 1, envs))
    return Trajectory(*map(torch.from_numpy, (reward, terminated, truncated, mask, value, rho)))


def pieces(trajectory: Trajectory) -> Iterator[Piece]:
    """By walking along each environment as a person would, with no use of discounts or masks in a formula."""
    rows, envs = trajectory.reward.shape
    for b in range(envs):
        first = None
        for t in range(rows):
            if not trajectory.mask[t, b]:
                assert first is None
                continue
            first = t if first is None else first
            if trajectory.terminated[t, b]:
                yield Piece(b, first, t, 0.0)
            elif trajectory.truncated[t, b] or t == rows - 1:
                yield Piece(b, first, t, float(trajectory.value[t + 1, b]))
            else:
                continue
            first = None


SPACES = Spaces(Observations((3,)), Discrete(4))
BOX_SPACES = Spaces(Observations((3,)), Box((2,), (-1.0, -1.0), (1.0, 1.0)))


def contribution(
    policy: nn.Module, seed: int, spaces: Spaces = SPACES, off_policy: float = 0.0, client: int = 0
) -> Contribution:
    """A random trajectory as an actor would send it, acted by `policy`; off_policy is the spread of its log_probs' errors."""
    trajectory = random_trajectory(seed)
    rows, envs = trajectory.reward.shape
    rng = np.random.default_rng(seed)
    bundle = Bundle.zeros(spaces.trajectory(rows, envs, LOG_PROB))
    bundle["observation"][...] = rng.normal(size=(rows + 1, envs, 3))
    with torch.no_grad():
        parameters, _ = policy(torch.from_numpy(bundle["observation"][:-1]))
        action = sample(parameters, torch.Generator().manual_seed(seed))
        bundle["action"][...] = action.numpy()
        bundle["log_prob"][...] = log_prob(parameters, action).numpy() + off_policy * rng.normal(size=(rows, envs))
    for name in ("reward", "terminated", "truncated", "mask"):
        bundle[name][...] = getattr(trajectory, name).numpy()
    return Contribution(Task(0, client, (client,)), 0, 0, Work(bundle))


def endless(rows: int, limit: int) -> Contribution:
    """Reward 1 for ever in an environment of one state, cut off after every `limit` rows; then a row that only resets."""
    bundle = Bundle.zeros(SPACES.trajectory(rows, 1, LOG_PROB))
    place = np.arange(rows) % (limit + 1)
    bundle["mask"][:, 0] = place < limit
    bundle["truncated"][:, 0] = place == limit - 1
    bundle["reward"][:, 0] = place < limit
    bundle["log_prob"][...] = -np.log(4)
    return Contribution(Task(0, 0, (0,)), 0, 0, Work(bundle))


class Constant(nn.Module):
    """A policy that does not look: four equally likely actions, one value."""

    def __init__(self) -> None:
        super().__init__()
        self.logits, self.value = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(()))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits.expand(len(observation), 4), self.value.expand(len(observation))


def sample(parameters: Parameters, generator: torch.Generator | None) -> torch.Tensor:
    """Actions, int64 [...] or float [..., A], drawn from `generator`; the likeliest action (or mean) if generator is None."""
    if isinstance(parameters, torch.Tensor):
        if generator is None:
            return parameters.argmax(-1)
        p = parameters.softmax(-1)
        return torch.multinomial(p.reshape(-1, p.shape[-1]), 1, generator=generator).reshape(p.shape[:-1])
    mean, log_std = parameters
    if generator is None:
        return mean
    return mean + log_std.exp() * torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
