"""Sample Factory's APPO on CartPole-v1. Runs in its own venv and imports nothing of Shoal.

Prints a JSON line: environment steps a second that were collected and learned from, after the first third of the steps, and the
versions. Words: WAY STEPS. WAY is batched (one environment of 512 that gymnasium steps natively, `batched_sampling`) or scalar
(two workers of eight environments, two splits each).

The one idea: asynchronous, one pass over the data (`num_epochs` 1), a rollout of 32, the same small perceptron, no
normalisation, no saving: the settings of Shoal's own case, where Sample Factory has them. Its V-trace cannot be asked for:
2.1.1 raises at its first summary, which wants the advantages that only GAE makes. So it learns by GAE.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import metadata
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
}
BATCH = {"batched": ENVS * 32, "scalar": 1024}


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


class Clock(AlgoObserver):  # type: ignore[misc]
    """Notes time and environment steps after each training step."""

    def __init__(self) -> None:
        self.moments: list[tuple[float, int]] = []

    def on_training_step(self, runner: Runner, training_iteration_since_resume: int) -> None:
        self.moments.append((time.perf_counter(), sum(runner.env_steps.values())))


def made(name: str, cfg: Any = None, config: Any = None, render_mode: str | None = None) -> Any:
    return Batched() if name == "batched" else gymnasium.make("CartPole-v1")


def main(way: str, steps: str) -> None:
    register_env("batched", made)
    register_env("scalar", made)
    words = [
        *(f"--env={way}", "--algo=APPO", "--experiment=bench", f"--train_dir={os.getcwd()}", "--device=cpu"),
        *("--async_rl=True", "--with_vtrace=False", "--num_epochs=1", "--rollout=32", "--recurrence=1", "--use_rnn=False"),
        *(f"--batch_size={BATCH[way]}", "--num_batches_per_epoch=1", f"--train_for_env_steps={steps}", "--learning_rate=1e-3"),
        *("--encoder_mlp_layers", "64", "64", "--nonlinearity=tanh", "--normalize_input=False", "--normalize_returns=False"),
        *(
            "--reward_scale=0.05",
            "--save_every_sec=100000",
            "--save_best_every_sec=100000",
            "--experiment_summaries_interval=100",
        ),
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
    versions = {name: metadata.version(name) for name in ("sample-factory", "gymnasium", "torch", "numpy")}
    print(json.dumps({"figure": (last - first) / (ended - began), "versions": versions}))


if __name__ == "__main__":
    main(*sys.argv[1:])
