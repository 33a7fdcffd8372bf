"""RLlib's IMPALA on CartPole-v1. Runs in its own venv and imports nothing of Shoal.

Prints a JSON line: environment steps a second that were sampled and learned from, over all iterations but the first three, and
the versions. Words: SECONDS RUNNERS ENVS.

The one idea: the new API stack with its defaults for CartPole, the learner in the driver's process, RUNNERS processes of ENVS
environments, one thread each.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from importlib import metadata

os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_DEDUP_LOGS="0", OMP_NUM_THREADS="1")

import ray
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME


def sampled(result: dict[str, float]) -> float:
    return float(result[NUM_ENV_STEPS_SAMPLED_LIFETIME])


def main(seconds: str, runners: str, envs: str) -> None:
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, _node_ip_address="127.0.0.1")
    config = (
        IMPALAConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=int(runners), num_envs_per_env_runner=int(envs))
        .learners(num_learners=0)
        .training(train_batch_size_per_learner=500)
        .reporting(min_time_s_per_iteration=1)
        .debugging(log_level="ERROR", seed=0)
    )
    algorithm = config.build_algo()
    while not sampled(algorithm.train()):  # the runners' processes start
        pass
    for _ in range(3):
        first = sampled(algorithm.train())
    began, last = time.perf_counter(), first
    while time.perf_counter() - began < float(seconds):
        last = sampled(algorithm.train())
    rate = (last - first) / (time.perf_counter() - began)
    algorithm.stop()
    ray.shutdown()
    print(json.dumps({"figure": rate, "versions": {name: metadata.version(name) for name in ("ray", "torch", "gymnasium")}}))


if __name__ == "__main__":
    main(*sys.argv[1:])
