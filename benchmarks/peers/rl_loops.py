"""CleanRL's PPO as a plain loop of our own, with CleanRL's hyperparameters: the package needs gym's old interface and cannot be
installed beside gymnasium 1 and numpy 2. Runs in a venv of its own and imports nothing of Shoal.

Prints a JSON line: environment steps a second, without the first two updates, and the versions. Words: ENV STEPS WAY, where WAY
is native (the id's own vector environment) or sync (gymnasium's SyncVectorEnv, as CleanRL has it).

The one idea: one process that steps, acts and learns by turns (Huang et al. 2022). ppo.py for discrete actions has 4
environments, 128 steps and 4 epochs of 4 minibatches; ppo_continuous_action.py for Box 1 environment, 2,048 steps and 10 epochs
of 32 minibatches, observations and rewards normalised. `native` has 512 environments of 32 steps in CleanRL's place.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import metadata
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

GAMMA, LAMBDA, CLIP, NORM, VALUE = 0.99, 0.95, 0.2, 0.5, 0.5


def layer(inputs: int, outputs: int, gain: float = 2**0.5) -> nn.Linear:
    made = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(made.weight, gain)
    nn.init.zeros_(made.bias)
    return made


class Agent(nn.Module):
    def __init__(self, inputs: int, outputs: int, box: bool) -> None:
        super().__init__()
        towers = ((outputs, 0.01), (1, 1.0))
        self.actor, self.critic = (
            nn.Sequential(layer(inputs, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, n, gain)) for n, gain in towers
        )
        self.log_std = nn.Parameter(torch.zeros(1, outputs)) if box else None

    def act(self, seen: Tensor, action: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        out = self.actor(seen)
        spread: Any = Categorical(logits=out) if self.log_std is None else Normal(out, self.log_std.expand_as(out).exp())
        action = spread.sample() if action is None else action
        told, undecided = spread.log_prob(action), spread.entropy()
        if self.log_std is not None:
            told, undecided = told.sum(1), undecided.sum(1)
        return action, told, undecided, self.critic(seen).squeeze(1)


def made(env: str, way: str, box: bool) -> Any:
    if way == "native":
        return gymnasium.make_vec(env, num_envs=512, vectorization_mode="vector_entry_point")
    if not box:
        return gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make(env)] * 4)

    def wrapped() -> Any:
        one = gymnasium.wrappers.NormalizeObservation(gymnasium.wrappers.ClipAction(gymnasium.make(env)))
        return gymnasium.wrappers.NormalizeReward(one, gamma=GAMMA)

    return gymnasium.vector.SyncVectorEnv([wrapped])


def run(env: str, steps: int, way: str) -> float:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    box = isinstance(gymnasium.make(env).action_space, gymnasium.spaces.Box)
    envs = made(env, way, box)
    T, B = (2048, 1) if box else (32, 512) if way == "native" else (128, 4)
    epochs, parts, entropy = (10, 32, 0.0) if box else (4, 4, 0.01)
    inputs = int(np.prod(envs.single_observation_space.shape))
    outputs = int(np.prod(envs.single_action_space.shape)) if box else int(envs.single_action_space.n)
    agent = Agent(inputs, outputs, box)
    adam = torch.optim.Adam(agent.parameters(), lr=3e-4 if box else 2.5e-4, eps=1e-5)
    seen_TB, told_TB, value_TB = torch.zeros((T, B, inputs)), torch.zeros((T, B)), torch.zeros((T, B))
    reward_TB, over_TB = torch.zeros((T, B)), torch.zeros((T, B))
    action_TB = torch.zeros((T, B, outputs)) if box else torch.zeros((T, B), dtype=torch.int64)
    seen = torch.as_tensor(envs.reset(seed=1)[0], dtype=torch.float32)
    over = torch.zeros(B)
    updates, began, skip = max(4, steps // (T * B)), 0.0, 2
    for update in range(updates):
        began = time.perf_counter() if update == skip else began
        for group in adam.param_groups:
            group["lr"] = (3e-4 if box else 2.5e-4) * (1 - update / updates)
        for t in range(T):
            seen_TB[t], over_TB[t] = seen, over
            with torch.no_grad():
                action_TB[t], told_TB[t], _, value_TB[t] = agent.act(seen)
            found, reward, terminated, truncated, _ = envs.step(action_TB[t].numpy())
            reward_TB[t] = torch.as_tensor(reward)
            seen = torch.as_tensor(found, dtype=torch.float32)
            over = torch.as_tensor(np.logical_or(terminated, truncated), dtype=torch.float32)
        with torch.no_grad():
            ahead, last = agent.critic(seen).squeeze(1), torch.zeros(B)
            advantage_TB = torch.zeros((T, B))
            for t in reversed(range(T)):
                lives = 1 - (over if t == T - 1 else over_TB[t + 1])
                following = ahead if t == T - 1 else value_TB[t + 1]
                delta = reward_TB[t] + GAMMA * following * lives - value_TB[t]
                advantage_TB[t] = last = delta + GAMMA * LAMBDA * lives * last
            target_TB = advantage_TB + value_TB
        flat = [x.flatten(0, 1) for x in (seen_TB, action_TB, told_TB, advantage_TB, target_TB, value_TB)]
        for _ in range(epochs):
            for rows in torch.randperm(T * B).chunk(parts):
                learn(agent, adam, [x[rows] for x in flat], entropy)
    return (updates - skip) * T * B / (time.perf_counter() - began)


def learn(agent: Agent, adam: torch.optim.Adam, batch: list[Tensor], entropy: float) -> None:
    seen, action, before, advantage, target, old = batch
    _, told, undecided, value = agent.act(seen, action)
    ratio = (told - before).exp()
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    policy = torch.max(-advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
    near = old + (value - old).clamp(-CLIP, CLIP)
    error = 0.5 * torch.max((value - target) ** 2, (near - target) ** 2).mean()
    adam.zero_grad()
    (policy - entropy * undecided.mean() + VALUE * error).backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(agent.parameters(), NORM)
    adam.step()


def main(env: str, steps: str, way: str) -> None:
    rate = run(env, int(steps), way)
    print(json.dumps({"figure": rate, "versions": {name: metadata.version(name) for name in ("gymnasium", "torch")}}))


if __name__ == "__main__":
    main(*sys.argv[1:])
