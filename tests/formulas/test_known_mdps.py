"""Small environments whose best policy and whose values are known: what a learner makes of them in every autoreset mode."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from shoal.actors.workers.rollout import Rollout
from shoal.aggregators.impala import IMPALALearner
from shoal.aggregators.ppo import PPOLearner
from shoal.envs.spaces import Discrete
from shoal.envs.vector import Envs
from shoal.nets.numpy_policy import NumpyPolicy
from shoal.nets.policies import ActorCritic
from shoal.protocol.work import Contribution, Task

MODES = ["NextStep", "SameStep", "Disabled"]
LEARNERS = [PPOLearner, IMPALALearner]


class Gate(gymnasium.Env[Any, Any]):
    """The first action decides: 2 opens the gate, and then each of the other steps pays 1; any other action costs 1 a step.

    Nothing later matters. Observation: at the gate, beyond it, outside. Episodes are cut off after `steps`.
    """

    observation_space = gymnasium.spaces.Discrete(3)
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place, self.at = 0, 0
        return self.place, {}

    def step(self, action: Any) -> Any:
        self.at += 1
        paid = (0.0, 1.0, -1.0)[self.place]
        self.place = self.place or (1 if action == 2 else 2)
        return self.place, paid, False, self.at == self.steps, {}


def played(mode: str, learner: Any, env: Any, versions: int, num_envs: int = 8) -> Any:
    """The learner's module after `versions` steps over rollouts of its own policy, of 12 rows each."""

    def make(number: int) -> Envs:
        return Envs(SyncVectorEnv([env] * number, autoreset_mode=AutoresetMode(mode)))

    worker = Rollout(make, NumpyPolicy(make(1).spaces.action), rollout_length=12, num_envs=num_envs, seed=5)
    for version in range(versions):
        task = Task(version, 0, (0,))
        learner.fold(Contribution(task, version, 0, worker.run(learner.weights(), 0, task)))
        learner.step()
    worker.close()
    return learner.flat.module


@pytest.mark.parametrize("steps", [2, 4])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", LEARNERS)
def test_the_first_action_of_an_episode_is_learned(kind: Any, mode: str, steps: int) -> None:
    module = ActorCritic(Envs(SyncVectorEnv([lambda: Gate(steps)])).spaces, (), seed=2)
    learner = kind(module, lr=0.03, gamma=0.9, ent_coef=0.0)
    played(mode, learner, lambda: Gate(steps), versions=60)
    with torch.no_grad():
        logits, _ = module(torch.eye(3))
    assert float(logits.softmax(-1)[0, 2]) > 0.9


class Hall(gymnasium.Env[Any, Any]):
    """Rooms in a row, entered one after the other, each worth 1 a step; cut off in the last room. The value of every room is
    that of an endless walk only if the last one bootstraps from itself."""

    observation_space = gymnasium.spaces.Discrete(4)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.room = 0
        return 0, {}

    def step(self, action: Any) -> Any:
        self.room += 1
        return min(self.room, 3), 1.0, False, self.room == 5, {}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", LEARNERS)
def test_the_value_of_every_state_is_that_of_the_endless_walk(kind: Any, mode: str) -> None:
    module = ActorCritic(Envs(SyncVectorEnv([Hall])).spaces, (), seed=2)
    learner = kind(module, lr=0.1, gamma=0.8, max_grad_norm=np.inf, total_timesteps=400 * 12)
    played(mode, learner, Hall, versions=400, num_envs=1)
    with torch.no_grad():
        _, value = module(torch.eye(4))
    assert value.tolist() == pytest.approx([5.0] * 4, abs=0.05)


@pytest.mark.parametrize("mode", MODES)
def test_every_transition_is_learned_from_once(mode: str) -> None:
    """Of 12 rows of 3 environments, only those that reset in the NextStep mode are no transitions."""
    envs: list[Envs] = []

    def make(number: int) -> Envs:
        envs.append(Envs(SyncVectorEnv([lambda: Gate(3)] * number, autoreset_mode=AutoresetMode(mode))))
        return envs[-1]

    worker = Rollout(make, NumpyPolicy(Discrete(3)), rollout_length=12, num_envs=3, seed=5)
    learner = IMPALALearner(ActorCritic(Envs(SyncVectorEnv([lambda: Gate(3)])).spaces, ()))
    works = [worker.run(learner.weights(), 0, Task(0, 0, (0,))) for _ in range(2)]
    for work in works:
        assert work.bundle is not None
        assert np.count_nonzero(work.bundle["mask"]) == work.steps == (27 if mode == "NextStep" else 36)
