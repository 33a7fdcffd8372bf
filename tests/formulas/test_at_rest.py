"""Policies with dropout and batch norm at rest: the learner's probability of an action is the actor's, and nothing wakes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import shoal
from shoal import Reinforcement
from shoal.actors.workers.rollout import Rollout
from shoal.aggregators.appo import APPOLearner
from shoal.aggregators.impala import IMPALALearner
from shoal.aggregators.ppo import PPOLearner
from shoal.envs.making import make_vector, spaces_in
from shoal.envs.spaces import Spaces
from shoal.nets.flat import FlatModule
from shoal.nets.policies import TorchPolicy
from shoal.protocol.work import Contribution, Task


class Resting(nn.Module):
    """Dropout, and batch norm whose running statistics are not 0 and 1, in evaluation mode."""

    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.norm, self.drop = nn.BatchNorm1d(16), nn.Dropout(0.5)
        self.body = nn.Sequential(nn.Linear(spaces.observation.size, 16), self.norm, nn.Tanh(), self.drop)
        self.logits, self.value = nn.Linear(16, spaces.action.size), nn.Linear(16, 1)
        self.norm.running_mean = torch.randn(16)
        self.norm.running_var = torch.rand(16) + 0.5
        self.eval()

    def forward(self, observation: Tensor) -> Any:
        x = self.body(observation)
        return self.logits(x), self.value(x).squeeze(-1)


LEARNERS: Mapping[str, tuple[Callable[..., Any], str, float]] = {
    "ppo": (PPOLearner, "first_ratio_error", 0.0),
    "impala": (IMPALALearner, "rho_mean", 1.0),
    "appo": (partial(APPOLearner, target_update_interval=1), "rho_mean", 1.0),
}


@pytest.mark.parametrize("method", LEARNERS)
def test_every_ratio_is_1_where_nothing_is_stale_also_when_the_weights_have_moved(method: str) -> None:
    kind, name, wanted = LEARNERS[method]
    spaces = spaces_in("CartPole-v1")
    module = Resting(spaces)
    learner = kind(module, lr=0.01)
    worker = Rollout(partial(make_vector, "CartPole-v1"), TorchPolicy(Resting(spaces), spaces.action), 16, 4, seed=1)
    before = {name: array.copy() for name, array in learner.weights().items()}
    for version in range(4):
        task = Task(version, 0, (0,))
        learner.fold(Contribution(task, version, 0, worker.run(learner.weights(), 0, task)))
        assert learner.step().metrics[name] == pytest.approx(wanted, abs=1e-5)
    worker.close()
    after = learner.weights()
    still = {name for name, array in before.items() if np.array_equal(array, after[name])}
    assert still == {name for name in before if "running_" in name or "num_batches" in name}
    assert not any(part.training for part in module.modules())


def test_the_mode_is_kept_and_not_chosen() -> None:
    """A policy that woke would draw what to drop, and judge a batch by the batch itself: its ratios would not be 1."""
    spaces = spaces_in("CartPole-v1")
    policy, awake = TorchPolicy(Resting(spaces), spaces.action), TorchPolicy(Resting(spaces).train(), spaces.action)
    seen = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    weights = FlatModule(Resting(spaces)).bundle()
    for each in (policy, awake):
        each.load(weights)
    assert np.array_equal(policy.parameters(seen), policy.parameters(seen))
    assert not np.allclose(awake.parameters(seen), policy.parameters(seen), atol=1e-2)


@pytest.mark.parametrize("method", ["ppo", "a2c"])
def test_a_whole_run_has_the_bits_of_the_plain_loop_and_every_ratio_is_1(method: str, tmp_path: Path) -> None:
    few: dict[str, Any] = {"num_envs": 4, "rollout_length": 16, "clients": 2, "total_timesteps": 128 * 4, "eval_episodes": 0}
    runs = [
        shoal.run(
            Reinforcement("CartPole-v1", Resting, method=method, lr=0.01, **few),
            actors=actors,
            folder=tmp_path / str(actors),
            show=False,
        )
        for actors in (0, 2)
    ]
    assert len({run.summary["weights_sha256"] for run in runs}) == 1
    if method == "ppo":
        assert [row["metrics"]["first_ratio_error"] for row in runs[1].history] == pytest.approx([0.0] * 4, abs=1e-5)
