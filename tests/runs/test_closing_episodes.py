"""The greedy episodes that a reinforcement-learning run plays at its end."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gymnasium
import pytest

import shoal
from shoal.protocol.errors import UserError
from shoal.runs.closing import FILE, Closing
from shoal.runs.summary import closing

SMALL: dict[str, Any] = {"num_envs": 4, "rollout_length": 16, "total_timesteps": 512, "eval_episodes": 3}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def job(**settings: Any) -> Any:
    return shoal.Reinforcement("CartPole-v1", method="ppo", clients=2, num_minibatches=2, **{**SMALL, **settings})


@pytest.mark.parametrize("actors", [0, 1])
def test_the_last_weights_play_what_evaluate_plays(actors: int) -> None:
    run = shoal.run(job(), actors=actors, folder="run")
    fresh = {name: value for name, value in run.metrics.items() if name.startswith("eval/")}
    assert fresh["eval/episodes"] == 3
    assert fresh["eval/return_mean"] == shoal.evaluate(run, episodes=3)["return_mean"]
    assert fresh.items() <= run.summary["metrics"].items()
    assert [row["version"] for row in run.history] == list(range(1, run.snapshot().version + 1))  # no row of its own
    assert closing(run.summary).startswith("inline:reinforcement: mean return of fresh greedy episodes ")
    assert not Path("run", FILE).exists()


def test_a_run_tells_how_old_its_mean_return_is() -> None:
    run = shoal.run(job(total_timesteps=2048, eval_episodes=0), actors=0, folder="run")
    ages = [row["metrics"].get("return_age") for row in run.history]
    assert all(age is None or 0 <= age <= row["steps"] for age, row in zip(ages, run.history, strict=True))
    assert max(age or 0 for age in ages) > 0
    assert "steps before, on average)" in closing(run.summary)


def test_no_episodes_are_played_where_none_are_wanted() -> None:
    for settings, stop_when in (({"eval_episodes": 0}, None), ({}, None)):
        run = shoal.start(job(**settings, total_timesteps=10**6 if not settings else 512), actors=0, folder=f"r{len(settings)}")
        with run:
            for _ in run:
                run.stop()
        assert not any(name.startswith("eval/") for name in run.metrics), stop_when


def test_a_run_that_stop_when_ended_plays_them() -> None:
    run = shoal.run(job(total_timesteps=10**6), actors=0, folder="run", stop_when=lambda row: row["version"] == 2)
    assert run.metrics["eval/episodes"] == 3


class Mortal(gymnasium.Env[Any, Any]):
    """Ends its process, or raises, at its 40th step of a greedy episode, in which the actions are all alike."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)
    how = "raise"

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.taken: list[int] = []
        return self.observation_space.sample() * 0, {}

    def step(self, action: Any) -> Any:
        self.taken.append(int(action))
        if len(self.taken) >= 40 and len(set(self.taken)) == 1:
            if self.how == "exit":
                os._exit(3)
            raise RuntimeError("the game is over")
        return self.observation_space.sample() * 0, 1.0, len(self.taken) >= 60, False, {}


class Exits(Mortal):
    how = "exit"


@pytest.mark.parametrize(("env", "actors"), [(Mortal, 0), (Mortal, 1), (Exits, 1)])
def test_an_environment_that_fails_then_costs_the_figure_and_not_the_run(env: Any, actors: int) -> None:
    made = shoal.Reinforcement(env, method="ppo", clients=1, num_minibatches=1, **SMALL)
    run = shoal.run(made, actors=actors, folder="run")
    assert run.reason == "done"
    assert "eval/return_mean" not in run.metrics
    log = Path("run/log.txt").read_text()
    assert "no greedy episodes at the end" in log
    assert "eval_episodes=0 leaves them out" in log
    assert json.loads(Path("run/summary.json").read_text())["version"] == run.snapshot().version


def test_an_evaluation_every_so_often_needs_episodes() -> None:
    with pytest.raises(UserError, match="eval_every=5: an evaluation needs episodes; eval_episodes=20, or eval_every=0"):
        job(eval_every=5, eval_episodes=0)


class Silent:
    """A nursery whose process never says anything."""

    fault = ""

    def __init__(self) -> None:
        self.alive: set[int] = set()
        self.line, self.end = os.pipe()

    def grow(self, many: int, arguments: Any) -> None: ...

    def ended(self) -> dict[int, int]:
        return {}

    def fileno(self) -> int:
        return self.line


def test_the_coordinator_does_not_wait_for_ever(tmp_path: Path) -> None:
    told: list[Any] = []
    times = iter(range(0, 1000, 10))
    pool: Any = Silent()
    last = Closing(job(), tmp_path, pool, 100.0, str, told.append, lambda: float(next(times)))
    assert last.metrics(1, None) == {}  # type: ignore[arg-type]
    assert "they took longer than 30 s" in told[0].text
