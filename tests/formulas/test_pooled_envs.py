"""EnvPool's environments, by a stand-in that has EnvPool's interface; by EnvPool itself where it is installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest

import shoal
from shoal.actors.workers.rollout import Rollout
from shoal.envs.making import make_vector
from shoal.envs.pooled import ATARI, game_of, told
from shoal.jobs.presets import found
from shoal.jobs.reinforcement import Reinforcement
from shoal.protocol.errors import UserError
from shoal.protocol.work import Task

THERE = importlib.util.find_spec("envpool") is not None


class Pool:
    """EnvPool's interface over CartPoles: one seed for all when they are made, `reset` takes none, and the step after an end
    only resets."""

    def __init__(self, task: str, num_envs: int, seed: int, max_episode_steps: int) -> None:
        self.envs = [gymnasium.make(task, max_episode_steps=max_episode_steps) for _ in range(num_envs)]
        self.observation_space, self.action_space = self.envs[0].observation_space, self.envs[0].action_space
        self.seeds: list[int | None] = [seed + i for i in range(num_envs)]
        self.over = np.zeros(num_envs, bool)
        self.closed = False

    def _begun(self, i: int) -> Any:
        seed, self.seeds[i] = self.seeds[i], None
        return self.envs[i].reset(seed=seed)[0]

    def reset(self) -> Any:
        return np.stack([self._begun(i) for i in range(len(self.envs))]), {"elapsed_step": np.zeros(len(self.envs), np.int32)}

    def step(self, actions: Any) -> Any:
        rows = [
            (self._begun(i), 0.0, False, False, {}) if self.over[i] else env.step(int(action))
            for i, (env, action) in enumerate(zip(self.envs, actions, strict=True))
        ]
        seen, reward, terminated, truncated, _ = zip(*rows, strict=True)
        self.over = np.array(terminated) | np.array(truncated)
        return np.stack(seen), np.array(reward, np.float32), np.array(terminated), np.array(truncated), {}

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[Pool]:
    """The pools that the stand-in has made."""
    made: list[Pool] = []

    def make(task: str, env_type: str, num_envs: int, batch_size: int, seed: int, num_threads: int, **given: Any) -> Pool:
        assert (env_type, batch_size, num_threads) == ("gymnasium", num_envs, 1)
        assert task == "CartPole-v1", f"{task} is not supported, `envpool.list_all_envs()` may help."
        made.append(Pool(task, num_envs, seed, **{"max_episode_steps": 500, **given}))
        return made[-1]

    monkeypatch.setitem(sys.modules, "envpool", SimpleNamespace(make=make))
    return made


def trajectory(client: int, num_envs: int = 3, **settings: Any) -> Any:
    job = Reinforcement("envpool:CartPole-v1", method="ppo", num_envs=num_envs, rollout_length=40, **settings)
    worker = job.worker()
    assert isinstance(worker, Rollout)
    works = [worker.run(job.problem.first(0)[0], client, Task(version, 0, (client,))) for version in range(2)]
    worker.close()
    return [work.bundle for work in works]


def test_environments_of_a_pool_are_those_of_sync_vector_env_with_the_same_seed(pools: list[Pool]) -> None:
    ours, theirs = make_vector("envpool:CartPole-v1", 3), make_vector("CartPole-v1", 3, "sync")
    assert (ours.spaces, ours.mode) == (theirs.spaces, "NextStep")
    steps = [envs.reset(11) for envs in (ours, theirs)]
    for t in range(60):
        for name in ("observation", "mask", "reward", "terminated", "truncated", "lived", "first"):
            np.testing.assert_array_equal(getattr(steps[0], name), getattr(steps[1], name), err_msg=f"{name}, step {t}")
        action = np.arange(3) % 2
        steps = [envs.step(action) for envs in (ours, theirs)]
    ours.close()
    assert all(pool.closed for pool in pools)


def test_every_client_has_episodes_of_its_own_which_its_seed_repeats(pools: list[Pool]) -> None:
    first, again, other = trajectory(0), trajectory(0), trajectory(1)
    assert [one.sha256() for one in first] == [one.sha256() for one in again]
    assert not np.array_equal(first[0]["observation"][0], other[0]["observation"][0])
    assert len(np.unique(first[0]["observation"][0], axis=0)) == 3


def test_a_time_limit_and_arguments_reach_the_pool(pools: list[Pool]) -> None:
    bundle = trajectory(0, time_limit=5)[0]
    assert bundle["truncated"][4].all()
    with pytest.raises(UserError, match=r"environment 'envpool:CartPole-v1' cannot be made: .*frames"):
        trajectory(0, env_kwargs={"frames": 3})


def test_tasks_that_the_pool_does_not_know_are_one_line(pools: list[Pool]) -> None:
    with pytest.raises(UserError, match=r"environment 'envpool:Pang-v5' cannot be made: Pang-v5 is not supported"):
        make_vector("envpool:Pang-v5", 2)


@pytest.mark.skipif(THERE, reason="envpool is installed")
def test_a_pool_that_is_not_installed_is_one_line() -> None:
    with pytest.raises(UserError, match=r"environment 'envpool:CartPole-v1' needs envpool: pip install 'shoal\[envpool\]'"):
        make_vector("envpool:CartPole-v1", 2)


@pytest.mark.parametrize(
    ("env", "game"),
    [
        ("envpool:Pong-v5", "Pong-v5"),
        ("envpool:MsPacman-v5", "MsPacman-v5"),
        ("envpool:Ant-v5", ""),
        ("envpool:CartPole-v1", ""),
        ("ALE/Pong-v5", ""),
        (lambda: None, ""),
    ],
)
def test_an_atari_game_of_a_pool_is_told_from_its_other_tasks(env: Any, game: str) -> None:
    assert game_of(env) == game


def test_a_pools_tasks_have_the_presets_of_their_families() -> None:
    for env, family in (("Pong-v5", "ALE/Pong-v5"), ("HalfCheetah-v5", "HalfCheetah-v5"), ("CartPole-v1", "CartPole-v1")):
        assert (row := found(f"envpool:{env}", "ppo")) is not None
        assert row == found(family, "ppo")
    job = Reinforcement("envpool:Pong-v5", method="ppo").plain()
    assert (job["clip_coef"], job["max_reward"]) == (0.1, 1.0)
    assert job["frame_stack"] == 1  # a pool stacks frames itself


def test_the_conditions_of_a_pools_game_are_told() -> None:
    job = Reinforcement("envpool:Pong-v5", method="ppo", env_kwargs={"noop_max": 1, "stack_num": 2})
    assert job.problem.conditions() == [
        "atari: as EnvPool gives it: repeat_action_probability=0.0, frame_skip=4, full_action_space=false, "
        "episodic_life=false, noop_max=1, use_fire_reset=true, reward_clip=false, 84x84 grey, stack_num=2; "
        "env.NAME=value changes one"
    ]
    assert Reinforcement("envpool:CartPole-v1", method="ppo").problem.conditions() == []


@pytest.mark.skipif(not THERE, reason="envpool is not installed")
def test_envpool_itself_gives_each_client_environments_of_its_own() -> None:
    first, again, other = trajectory(0), trajectory(0), trajectory(1)
    assert [one.sha256() for one in first] == [one.sha256() for one in again]
    assert not np.array_equal(first[0]["observation"][0], other[0]["observation"][0])
    for bundle in first:
        assert (bundle["reward"][bundle["mask"]] == 1).all()


@pytest.mark.skipif(not THERE, reason="envpool is not installed")
def test_what_is_said_of_envpools_atari_is_what_it_does() -> None:
    import envpool

    registered = envpool.registration.registry.specs
    tasks = [name for name in envpool.list_all_envs() if not game_of(f"envpool:{name}")]
    games = [name for name in envpool.list_all_envs() if game_of(f"envpool:{name}")]
    assert len(games) > 50
    assert {registered[name][0] for name in games} == {"envpool.atari"}
    assert not any(registered[name][0] == "envpool.atari" for name in tasks)
    config = envpool.make_spec("Pong-v5").config
    assert {name: getattr(config, name) for name in ATARI} == pytest.approx(ATARI)
    assert (config.img_height, config.img_width, config.gray_scale, config.stack_num) == (84, 84, True, 4)


@pytest.mark.skipif(not THERE, reason="envpool is not installed")
def test_a_game_of_envpool_is_learned_by_its_preset(tmp_path: Path) -> None:
    few = {"total_timesteps": 256, "num_envs": 2, "rollout_length": 32, "num_minibatches": 1, "update_epochs": 1}
    job = Reinforcement("envpool:Pong-v5", method="ppo", **few, eval_episodes=1, time_limit=50)
    run = shoal.run(job, actors=1, folder=tmp_path / "run", show=False)
    assert 200 < run.summary["steps"] <= 256
    assert run.summary["conditions"] == [told({})]
    assert -2 <= run.metrics["eval/return_mean"] <= 2
