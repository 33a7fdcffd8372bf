"""The case rl-gpu: what it asks of its figures, and the bound that simulation sets."""

from __future__ import annotations

from shoal.benchmarks.pictures import RESNET, meets, simulation_bound
from shoal.jobs.reinforcement import Reinforcement


def test_a_gpu_must_come_near_the_bound_of_simulation_too() -> None:
    assert meets(RESNET, RESNET, 180.0)
    assert meets(0.8 * 30_000, 30_000, 100.0)
    assert not meets(0.79 * 30_000, 30_000, 100.0)  # the bound is higher than the figure that is asked for
    assert not meets(RESNET - 1, RESNET, 100.0)
    assert not meets(RESNET, RESNET, 180.1)
    assert not meets(RESNET, RESNET, None)


def test_the_bound_of_simulation_is_of_the_jobs_environments_alone() -> None:
    assert simulation_bound(Reinforcement("CartPole-v1", num_envs=16, rollout_length=64, policy=None), 20) > 1_000
