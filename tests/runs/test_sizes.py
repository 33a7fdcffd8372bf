"""The number of environments that nobody chose: which sizes are tried, which one is taken, and when none is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import shoal
from shoal.runs import sizes
from shoal.runs.rundir import Config
from shoal.runs.sizes import SIZES, Timed, chosen, sized, sizes_of, trial


def job(**settings: Any) -> Any:
    return shoal.Reinforcement("CartPole-v1", **{"preset": "none", "total_timesteps": 2_500_000, **settings})


@pytest.mark.parametrize(
    ("steps", "batch", "length", "wanted"),
    [(10**9, 1, 32, [*SIZES]), (1_024_000, 1, 32, [32, 64, 128]), (1_024_000, 2, 32, [32, 64]), (1_000, 2, 32, [32])],
)
def test_sizes_leave_a_run_enough_versions(steps: int, batch: int, length: int, wanted: list[int]) -> None:
    assert sizes_of(job(total_timesteps=steps, batch=batch, rollout_length=length)) == wanted


def test_a_version_of_several_minibatches_counts_as_several_gradient_steps() -> None:
    assert sizes_of(job(total_timesteps=1_024_000, batch=1, num_minibatches=4)) == [32, 64, 128, 256, 512]
    assert sizes_of(job(total_timesteps=512_000, batch=1, num_minibatches=4)) == [32, 64, 128, 256]


def test_the_rate_is_that_of_the_slower_side_or_of_all_cores() -> None:
    assert Timed(32, act=4e-6, learn=1e-6).rate(actors=2, many=8) == 1 / 2e-6  # two actors
    assert Timed(32, act=1e-6, learn=4e-6).rate(actors=8, many=8) == 1 / 4e-6  # the learner
    assert Timed(32, act=2e-6, learn=2e-6).rate(actors=8, many=2) == 1 / 2e-6  # both share two cores
    assert Timed(32, act=2e-6, learn=2e-6).rate(actors=1, many=1) == 1 / 4e-6


def test_the_smallest_that_comes_near_the_fastest_is_taken() -> None:
    found = [Timed(32, 9e-6, 0), Timed(64, 5.2e-6, 0), Timed(128, 5e-6, 0), Timed(256, 5.1e-6, 0)]
    assert chosen(found, 1, 1).num_envs == 64


def test_a_trial_goes_on_while_it_pays() -> None:
    made = list(trial(job(total_timesteps=10**9)))
    assert [one.num_envs for one in made] == list(SIZES[: len(made)])
    assert all(0 < one.act < 1 and 0 < one.learn < 1 for one in made)


@pytest.mark.parametrize(
    "settings", [{"num_envs": 32}, {"rollout_length": 32}, {"tune_envs": False}, {"method": "ppo"}, {"total_timesteps": 1000}]
)
def test_what_somebody_chose_stays(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "_in_a_copy", lambda job: [Timed(512, 1e-9, 1e-9)])
    made = job(**settings)
    assert sized(made, 2) == (made, ())
    assert sized(job(), 0)[0].method.num_envs == 32  # the plain loop, whose bits are promised


def test_a_choice_is_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sizes, "_in_a_copy", lambda job: [Timed(32, 1e-5, 1e-6), Timed(64, 1e-6, 1e-6)])
    monkeypatch.setattr(sizes, "lone", lambda: True)
    run = shoal.run(job(eval_episodes=0), actors=1, folder="run", stop_when=lambda row: row["version"] >= 2)
    assert Config.load("run/config.toml").settings["num_envs"] == 64
    assert "num_envs=64: steps a second" in Path("run/log.txt").read_text()
    assert run.resume(stop_when=lambda row: True).job.method.num_envs == 64  # type: ignore[attr-defined]


class Ends(gymnasium.Env[Any, Any]):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        os._exit(3)


def test_a_trial_that_dies_leaves_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    made = shoal.Reinforcement(Ends, total_timesteps=10**9)
    assert sizes._in_a_copy(made) == []
    monkeypatch.setattr(sizes, "lone", lambda: True)
    again, told = sized(made, 2)
    assert again is made
    assert told == ("a trial of numbers of environments failed, and num_envs stays at its default",)
