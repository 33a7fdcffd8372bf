"""Stable-Baselines3's PPO and SAC. Runs in its own venv and imports nothing of Shoal.

Prints a JSON line: environment steps a second, and the versions. The first two rollouts of PPO are left out, and the first
random steps of SAC. Words: ENV STEPS ENVS [METHOD [THREADS]], where METHOD is ppo or sac.

The one idea: its own PPO with the zoo's hyperparameters of the environment, environments one after another in one process
(DummyVecEnv), one thread: the fastest of its ways on two cores for environments of microseconds. The zoo gives SAC on
HalfCheetah 10,000 random steps and else the package's defaults, one update a step; here the random steps are fewer, because
none of them counts.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import metadata
from typing import Any

import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

ZOO: dict[str, dict[str, Any]] = {
    "CartPole-v1": {"n_steps": 32, "batch_size": 256, "n_epochs": 20, "gae_lambda": 0.8, "gamma": 0.98, "learning_rate": 1e-3},
    "HalfCheetah-v5": {
        "n_steps": 512,
        "batch_size": 64,
        "n_epochs": 20,
        "gae_lambda": 0.92,
        "gamma": 0.98,
        "learning_rate": 2.0633e-05,
        "clip_range": 0.1,
        "ent_coef": 0.000401762,
        "vf_coef": 0.58096,
        "max_grad_norm": 0.8,
        "policy_kwargs": {"log_std_init": -2, "ortho_init": False, "net_arch": {"pi": [256, 256], "vf": [256, 256]}},
    },
}
RANDOM = 300  # steps of SAC before the first update


class Clock(BaseCallback):  # type: ignore[misc]
    """Notes time and steps at the start of each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[tuple[float, int]] = []

    def _on_rollout_start(self) -> None:
        self.moments.append((time.perf_counter(), self.num_timesteps))

    def _on_step(self) -> bool:
        return True


def main(env: str, steps: str, envs: str, method: str = "ppo", threads: str = "1") -> None:
    torch.set_num_threads(int(threads))
    clock, environments = Clock(), make_vec_env(env, int(envs), seed=0)
    if method == "sac":
        model: Any = SAC("MlpPolicy", environments, device="cpu", seed=0, learning_starts=RANDOM)
    else:
        model = PPO("MlpPolicy", environments, device="cpu", seed=0, **ZOO[env])
    model.learn(int(steps), callback=clock)
    clock.moments.append((time.perf_counter(), model.num_timesteps))
    if method == "sac":
        skip = next(i for i, (_, number) in enumerate(clock.moments) if number > RANDOM + 10)  # the first updates are slower
    else:
        skip = min(2, len(clock.moments) - 2)
    (began, first), (ended, last) = clock.moments[skip], clock.moments[-1]
    versions = {name: metadata.version(name) for name in ("stable-baselines3", "gymnasium", "torch")}
    print(json.dumps({"figure": (last - first) / (ended - began), "versions": versions}))


if __name__ == "__main__":
    main(*sys.argv[1:])
