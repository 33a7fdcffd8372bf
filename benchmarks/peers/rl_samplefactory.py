"""Sample Factory's APPO on CartPole-v1 or ALE/Pong-v5. Runs in its own venv and imports nothing of Shoal.

Prints a JSON line: environment steps a second that were collected and learned from, after the first third of the steps, and the
versions. Words: WAY STEPS. CartPole: batched (one environment of 512 that gymnasium steps natively, `batched_sampling`) or
scalar (two workers of eight environments, two splits each). Pong: pong-batched (two workers of one environment of 32 games,
which ALE steps natively) or pong-scalar (two workers of 16 games, two splits each).

The one idea: asynchronous, one pass over the data (`num_epochs` 1), the rollouts and networks of Shoal's own cases, no
normalisation, no saving: the settings of those cases, where Sample Factory has them. Its V-trace cannot be asked for:
2.1.1 raises at its first summary, which wants the advantages that only GAE makes. So it learns by GAE.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module, metadata
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", WANDB_MODE="disabled", TENSORBOARD_NO_TF="1")

import gymnasium
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from sample_factory.algo.runners.runner import AlgoObserver, Runner
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.train import make_runner

ENVS = 512
WAYS = {
    "batched": ("--batched_sampling=True", "--num_workers=1", "--num_envs_per_worker=1", "--worker_num_splits=1"),
    "scalar": ("--batched_sampling=False", "--num_workers=2", "--num_envs_per_worker=8", "--worker_num_splits=2"),
    "pong-batched": ("--batched_sampling=True", "--num_workers=2", "--num_envs_per_worker=1", "--worker_num_splits=1"),
    "pong-scalar": ("--batched_sampling=False", "--num_workers=2", "--num_envs_per_worker=16", "--worker_num_splits=2"),
}
BATCH = {"batched": ENVS * 32, "scalar": 1024, "pong-batched": 1280, "pong-scalar": 1280}
GAMES = 32  # of each worker
CARTPOLE = (
    *("--rollout=32", "--learning_rate=1e-3", "--reward_scale=0.05"),
    *("--encoder_mlp_layers", "64", "64", "--nonlinearity=tanh"),
)
PONG = (
    *("--rollout=20", "--learning_rate=6e-4", "--max_grad_norm=40"),
    *("--encoder_conv_architecture=convnet_atari", "--nonlinearity=relu", "--obs_scale=255"),
)


class Batched(gymnasium.Env):
    """Many CartPoles as one environment of many agents, as Sample Factory wants natively batched ones."""

    def __init__(self) -> None:
        self.many = CartPoleVectorEnv(ENVS)
        self.num_agents, self.is_multiagent = ENVS, True
        self.observation_space = gymnasium.spaces.Dict({"obs": self.many.single_observation_space})
        self.action_space = self.many.single_action_space
        self.render_mode = None

    def reset(self, **given: Any) -> Any:
        seen, _ = self.many.reset(seed=given.get("seed"))
        return {"obs": seen}, [{} for _ in range(ENVS)]

    def step(self, action: Any) -> Any:
        seen, reward, terminated, truncated, _ = self.many.step(np.asarray(action).astype(np.int64))
        return {"obs": seen}, np.asarray(reward, np.float32), terminated, truncated, {}

    def render(self) -> None: ...


class Pong(gymnasium.Env):
    """Many games of Pong as one environment of many agents, by the protocol of Machado et al. 2018: as Shoal's own."""

    def __init__(self, games: int, batched: bool) -> None:
        from ale_py import roms

        made = import_module("ale_py._ale_py").ALEVectorInterface  # gymnasium 0.29 lacks what ale_py's VectorEnv is made of
        shape: dict[str, Any] = {"frame_skip": 4, "stack_num": 4, "img_height": 84, "img_width": 84, "grayscale": True}
        plain = dict.fromkeys(("use_fire_reset", "episodic_life", "life_loss_info", "reward_clipping"), False)
        more: dict[str, Any] = {"max_episode_steps": 108_000, "repeat_action_probability": 0.25, "full_action_space": True}
        self.many = made(
            rom_path=roms.get_rom_path("pong"),
            num_envs=games,
            **shape,
            **plain,
            **more,
            maxpool=True,
            noop_max=0,
            batch_size=0,
            num_threads=1,
            thread_affinity_offset=-1,
            autoreset_mode="SameStep",
        )
        self.games, self.batched = games, batched
        self.num_agents, self.is_multiagent = games, batched
        seen = gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8)
        self.observation_space = gymnasium.spaces.Dict({"obs": seen})
        self.action_space = gymnasium.spaces.Discrete(18)
        self.render_mode = None

    def reset(self, **given: Any) -> Any:
        seed = given.get("seed")
        seeds = np.full(self.games, -1) if seed is None else np.arange(seed, seed + self.games)
        seen, _ = self.many.reset(np.arange(self.games), seeds)
        return ({"obs": seen}, [{} for _ in range(self.games)]) if self.batched else ({"obs": seen[0]}, {})

    def step(self, action: Any) -> Any:
        actions = np.asarray(action).astype(np.int64).reshape(self.games)
        self.many.send(actions, np.ones(self.games, np.float32))
        seen, reward, terminated, truncated, _ = self.many.recv()
        if not self.batched:
            return {"obs": seen[0]}, float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}
        return {"obs": seen}, np.asarray(reward, np.float32), np.asarray(terminated), np.asarray(truncated), {}

    def render(self) -> None: ...


class Clock(AlgoObserver):  # type: ignore[misc]
    """Notes time and environment steps after each training step."""

    def __init__(self) -> None:
        self.moments: list[tuple[float, int]] = []

    def on_training_step(self, runner: Runner, training_iteration_since_resume: int) -> None:
        self.moments.append((time.perf_counter(), sum(runner.env_steps.values())))


def made(name: str, cfg: Any = None, config: Any = None, render_mode: str | None = None) -> Any:
    match name:
        case "batched":
            return Batched()
        case "pong-batched":
            return Pong(GAMES, batched=True)
        case "pong-scalar":
            return Pong(1, batched=False)
    return gymnasium.make("CartPole-v1")


def main(way: str, steps: str) -> None:
    for name in WAYS:
        register_env(name, made)
    words = [
        *(f"--env={way}", "--algo=APPO", "--experiment=bench", f"--train_dir={os.getcwd()}", "--device=cpu"),
        *("--async_rl=True", "--with_vtrace=False", "--num_epochs=1", "--recurrence=1", "--use_rnn=False"),
        *(f"--batch_size={BATCH[way]}", "--num_batches_per_epoch=1", f"--train_for_env_steps={steps}"),
        *("--normalize_input=False", "--normalize_returns=False", *(PONG if way.startswith("pong") else CARTPOLE)),
        *("--save_every_sec=100000", "--save_best_every_sec=100000", "--experiment_summaries_interval=100"),
        *("--actor_worker_gpus", "--decorrelate_envs_on_one_worker=False", "--max_policy_lag=1000", *WAYS[way]),
    ]
    parser, _ = parse_sf_args(argv=words)
    _, runner = make_runner(parse_full_cfg(parser, words))
    clock = Clock()
    runner.register_observer(clock)
    runner.init()
    runner.run()
    moments = clock.moments[len(clock.moments) // 3 :]
    (began, first), (ended, last) = moments[0], moments[-1]
    versions = {name: metadata.version(name) for name in ("sample-factory", "gymnasium", "torch", "numpy", "ale-py")}
    print(json.dumps({"figure": (last - first) / (ended - began), "versions": versions}))


if __name__ == "__main__":
    main(*sys.argv[1:])
