"""The size of trajectories that nobody chose: which sizes are tried, which one is taken, and when none is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import shoal
from shoal.runs import sizes
from shoal.runs.rundir import Config
from shoal.runs.sizes import SIZES, Timed, chosen, sized, sizes_of, trial
from shoal.runs.threads import cores


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
    assert Timed(32, 32, act=4e-6, learn=1e-6).rate(actors=2, many=8) == 1 / 2e-6  # two actors
    assert Timed(32, 32, act=1e-6, learn=4e-6).rate(actors=8, many=8) == 1 / 4e-6  # the learner
    assert Timed(32, 32, act=2e-6, learn=2e-6).rate(actors=8, many=2) == 1 / 2e-6  # both share two cores
    assert Timed(32, 32, act=2e-6, learn=2e-6).rate(actors=1, many=1) == 1 / 4e-6


def test_the_smallest_that_comes_near_the_fastest_is_taken() -> None:
    found = [Timed(32, 32, 9e-6, 0), Timed(64, 32, 5.2e-6, 0), Timed(128, 32, 5e-6, 0), Timed(256, 32, 5.1e-6, 0)]
    assert chosen(found, 1, 1) == found[1]


def test_another_length_is_taken_only_if_it_is_clearly_faster() -> None:
    found = [Timed(32, 32, 9e-6, 0), Timed(64, 32, 5e-6, 0)]
    near, faster, fastest = Timed(64, 64, 4.8e-6, 0), Timed(64, 64, 4.6e-6, 0), Timed(64, 16, 4.5e-6, 0)
    assert chosen([*found, near], 1, 1) == found[1]
    assert chosen([*found, faster], 1, 1) == faster
    assert chosen([*found, faster, fastest], 1, 1) == fastest


def timed(monkeypatch: pytest.MonkeyPatch, act: Callable[[int, int], float], seconds: float = 0.0) -> Callable[[], float]:
    """A clock. Each trial takes `act` seconds for a step, and moves the clock by `seconds`."""
    now = [0.0]

    def measured(job: Any, size: tuple[int, int], clock: Any) -> Timed:
        assert (job.method.num_envs, job.method.rollout_length) == size
        now[0] += seconds
        return Timed(*size, act(*size), 0.0)

    monkeypatch.setattr(sizes, "_timed", measured)
    return lambda: now[0]


def sizes_in(found: Iterable[Timed]) -> list[tuple[int, int]]:
    return [(one.num_envs, one.rollout_length) for one in found]


def test_numbers_of_environments_are_tried_before_lengths_while_each_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = timed(monkeypatch, lambda envs, length: 1e-6 + abs(envs - 128) * 1e-7 + abs(length - 64) * 1e-8)
    made = list(trial(job(total_timesteps=10**9), 2, clock))
    by_envs, by_length = [(32, 32), (64, 32), (128, 32), (256, 32)], [(128, 64), (128, 128), (128, 16)]
    assert sizes_in(made) == by_envs + by_length
    assert sizes_in([chosen(made, 2, 2)]) == [(128, 64)]


def test_no_size_leaves_a_run_too_few_gradient_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = timed(monkeypatch, lambda envs, length: 1e-3 / (envs * length))
    made = list(trial(job(total_timesteps=1_024_000, batch=1), 2, clock))  # 250 steps of 4,096 rows
    assert sizes_in(made) == [(32, 32), (64, 32), (128, 32), (128, 16)]


def test_no_size_is_begun_after_the_seconds_of_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = timed(monkeypatch, lambda envs, length: 1e-3 / (envs * length), seconds=sizes.LONGEST / 2 + 0.1)
    assert sizes_in(trial(job(total_timesteps=10**9), 2, clock)) == [(32, 32), (64, 32)]


@pytest.mark.parametrize("method", ["impala", "appo"])
def test_a_trial_goes_on_while_it_pays(method: str) -> None:
    made = list(trial(job(method=method, total_timesteps=10**9), 1))
    by_envs = [one for one in made if one.rollout_length == 32]
    assert [one.num_envs for one in by_envs] == list(SIZES[: len(by_envs)])
    assert {one.num_envs for one in made[len(by_envs) :]} <= {chosen(by_envs, 1, cores()).num_envs}
    assert all(0 < one.act < 1 and 0 < one.learn < 1 for one in made)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_envs": 32},
        {"rollout_length": 32},
        {"tune_envs": False},
        {"method": "ppo"},
        {"method": "apex"},
        {"total_timesteps": 1000},
        {"preset": "auto"},
        {"preset": "auto", "method": "appo"},
    ],
    ids=str,
)
def test_what_somebody_chose_stays(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "_in_a_copy", lambda job, actors: [Timed(512, 16, 1e-9, 1e-9)])
    monkeypatch.setattr(sizes, "lone", lambda: True)
    made = job(**settings)
    assert sized(made, 2) == (made, ())
    assert sized(job(), 0)[0] == job()  # the plain loop, whose bits are promised
    other = sized(job(method="appo"), 2)[0].method
    assert (other.num_envs, other.rollout_length) == (512, 16)


def test_a_choice_is_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = [Timed(32, 32, 1e-5, 1e-6), Timed(64, 32, 1e-6, 1e-6), Timed(64, 16, 5e-7, 5e-7)]
    monkeypatch.setattr(sizes, "_in_a_copy", lambda job, actors: found)
    monkeypatch.setattr(sizes, "lone", lambda: True)
    run = shoal.run(job(eval_episodes=0), actors=1, folder="run", stop_when=lambda row: row["version"] >= 2)
    kept = Config.load("run/config.toml").settings
    assert (kept["num_envs"], kept["rollout_length"]) == (64, 16)
    log = Path("run/log.txt").read_text()
    assert "num_envs=64 rollout_length=16: steps a second that a trial makes of num_envs x rollout_length: 32 x 32: " in log
    method: Any = run.resume(stop_when=lambda row: True).job.method
    assert (method.num_envs, method.rollout_length) == (64, 16)


class Ends(gymnasium.Env[Any, Any]):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        os._exit(3)


def test_a_trial_that_dies_leaves_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    made = shoal.Reinforcement(Ends, total_timesteps=10**9)
    assert sizes._in_a_copy(made, 2) == []
    monkeypatch.setattr(sizes, "lone", lambda: True)
    again, told = sized(made, 2)
    assert again is made
    assert told == ("a trial of sizes of trajectories failed, and num_envs and rollout_length stay at their defaults",)
