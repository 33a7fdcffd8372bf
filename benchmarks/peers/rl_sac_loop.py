"""CleanRL's SAC as a plain loop of our own, with CleanRL's hyperparameters: the package needs gym's old interface and cannot be
installed beside gymnasium 1 and numpy 2. Runs in a venv of its own and imports nothing of Shoal.

Prints a JSON line: environment steps a second once it learns, and the versions. Words: ENV STEPS.

The one idea: one process that makes a step, then one update of the critics, and at every second step two updates of the policy
and the temperature (Huang et al. 2022, sac_continuous_action.py).
"""

from __future__ import annotations

import json
import math
import sys
import time
from importlib import metadata
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

GAMMA, TAU, BATCH, BUFFER, EVERY = 0.99, 0.005, 256, 100_000, 2
RANDOM = 300  # steps before the first update: CleanRL has 5,000, and none of them counts here
LEAST, MOST = -5.0, 2.0  # of the logarithm of the standard deviation


def perceptron(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, outputs))


class Actor(nn.Module):
    def __init__(self, inputs: int, actions: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, 256), nn.Linear(256, 256)
        self.mean, self.log_std = nn.Linear(256, actions), nn.Linear(256, actions)

    def drawn(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """An action in [-1, 1] and its log density [N, 1]."""
        x = functional.relu(self.second(functional.relu(self.first(seen))))
        mean = self.mean(x)
        std = (LEAST + 0.5 * (MOST - LEAST) * (torch.tanh(self.log_std(x)) + 1)).exp()
        normal = torch.distributions.Normal(mean, std)
        u = normal.rsample()
        action = torch.tanh(u)
        density = normal.log_prob(u) - torch.log(1 - action.pow(2) + 1e-6)  # type: ignore[no-untyped-call]
        return action, density.sum(1, keepdim=True)


class Replay:
    """A ring of transitions in numpy, from which batches are drawn uniformly."""

    def __init__(self, inputs: int, actions: int) -> None:
        self.arrays = [np.zeros((BUFFER, n), np.float32) for n in (inputs, inputs, actions, 1, 1)]
        self.count, self.rng = 0, np.random.default_rng(0)

    def add(self, *row: Any) -> None:
        for array, value in zip(self.arrays, row, strict=True):
            array[self.count % BUFFER] = value
        self.count += 1

    def draw(self) -> list[Tensor]:
        rows = self.rng.integers(0, min(self.count, BUFFER), BATCH)
        return [torch.from_numpy(array[rows]) for array in self.arrays]


def run(env: str, steps: int) -> float:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    envs = gymnasium.vector.SyncVectorEnv(
        [lambda: gymnasium.make(env)], autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP
    )
    space: Any = envs.single_action_space
    inputs, actions = math.prod(envs.single_observation_space.shape or ()), math.prod(space.shape)
    half, middle = (space.high - space.low) / 2, (space.high + space.low) / 2
    actor = Actor(inputs, actions)
    critics, targets = ([perceptron(inputs + actions, 1) for _ in range(2)] for _ in range(2))
    for critic, target in zip(critics, targets, strict=True):
        target.load_state_dict(critic.state_dict())
    of_critics = torch.optim.Adam([each for critic in critics for each in critic.parameters()], lr=1e-3)
    of_actor = torch.optim.Adam(actor.parameters(), lr=3e-4)
    log_alpha = torch.zeros(1, requires_grad=True)
    of_alpha = torch.optim.Adam([log_alpha], lr=1e-3)
    replay, began, first = Replay(inputs, actions), 0.0, RANDOM + 10
    seen = envs.reset(seed=1)[0]
    for step in range(steps):
        if step == first:
            began = time.perf_counter()
        if step < RANDOM:
            action = np.stack([space.sample()])
        else:
            with torch.no_grad():
                action = actor.drawn(torch.as_tensor(seen, dtype=torch.float32))[0].numpy() * half + middle
        following, reward, terminated, truncated, infos = envs.step(action)
        after = infos["final_obs"][0] if truncated[0] or terminated[0] else following[0]
        replay.add(seen[0], after, (action[0] - middle) / half, reward, terminated)
        seen = following
        if step < RANDOM:
            continue
        now, then, acted, paid, over = replay.draw()
        alpha = log_alpha.exp().item()
        with torch.no_grad():
            ahead, density = actor.drawn(then)
            least = torch.min(*(target(torch.cat([then, ahead], 1)) for target in targets))
            aim = paid + (1 - over) * GAMMA * (least - alpha * density)
        error = sum(functional.mse_loss(critic(torch.cat([now, acted], 1)), aim) for critic in critics)
        assert isinstance(error, Tensor)
        of_critics.zero_grad()
        error.backward()  # type: ignore[no-untyped-call]
        of_critics.step()
        for _ in range(EVERY if step % EVERY == 0 else 0):
            chosen, density = actor.drawn(now)
            cost = (alpha * density - torch.min(*(critic(torch.cat([now, chosen], 1)) for critic in critics))).mean()
            of_actor.zero_grad()
            cost.backward()
            of_actor.step()
            with torch.no_grad():
                density = actor.drawn(now)[1]
            of_alpha.zero_grad()
            (-log_alpha.exp() * (density - actions)).mean().backward()
            of_alpha.step()
            alpha = log_alpha.exp().item()
        with torch.no_grad():
            for critic, target in zip(critics, targets, strict=True):
                for weight, old in zip(critic.parameters(), target.parameters(), strict=True):
                    old.copy_(TAU * weight + (1 - TAU) * old)
    assert math.isfinite(log_alpha.item())
    return (steps - first) / (time.perf_counter() - began)


def main(env: str, steps: str) -> None:
    rate = run(env, int(steps))
    print(json.dumps({"figure": rate, "versions": {name: metadata.version(name) for name in ("gymnasium", "torch")}}))


if __name__ == "__main__":
    main(*sys.argv[1:])
