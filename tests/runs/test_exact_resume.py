"""A run of reinforcement learning goes on with the same bits after kill -9: environments, statistics and learner alike."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from whole import run

import shoal
from shoal.commands.cli import main
from shoal.jobs.catalog import find
from shoal.protocol.parent import forked
from shoal.runs.run import Run

JOB = """
import os
import signal
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

from shoal import Parallel, Reinforcement
from shoal.aggregators.around import Around

HERE = Path(__file__).parent


def die(sign, after):
    rows = HERE / "run" / "metrics.jsonl"
    if (HERE / sign).exists() and rows.exists() and len(rows.read_text().splitlines()) > after:
        (HERE / sign).unlink(missing_ok=True)
        os.kill(os.getpid(), signal.SIGKILL)


class Poles(CartPoleVectorEnv):
    def step(self, action):
        die("actor-dies", 3)
        return super().step(action)


class Bag:
    def __init__(self):
        self.coins, self.path = 0, []


class Walk(gymnasium.Env):  # its state are its attributes
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self):
        self.bag, self.wind = Bag(), np.random.normal()

    def seen(self):
        return np.array([self.at, self.bag.coins, self.wind])

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.bag.coins, self.bag.path = int(self.np_random.integers(5)), 0, []
        return self.seen(), {}

    def step(self, action):
        die("actor-dies", 3)
        self.at += int(action) - 1 + int(np.random.random() < 0.3)
        self.wind = 0.9 * self.wind + self.np_random.normal()
        self.bag.path.append(self.at)
        self.bag.coins += self.at > 3
        return self.seen(), float(self.bag.coins) / 5, len(self.bag.path) > 30 or abs(self.at) > 12, False, {}


class Hidden(Walk):  # draws from the global generators, so that no episode can be played again
    def __init__(self):
        super().__init__()
        self.coming = iter(range(10**9))


class Cards:  # a game whose next cards are in an iterator; "a" leaves it before "b"
    possible_agents = ("a", "b")

    def observation_space(self, agent):
        return gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)

    def action_space(self, agent):
        return gymnasium.spaces.Discrete(3)

    def seen(self, agents):
        card = next(self.coming)
        return {name: np.array([self.points[name], card, self.t]) for name in agents}

    def reset(self, seed=None, options=None):
        if seed is not None:
            self.dice = np.random.default_rng(seed)
        self.coming, self.t, self.points = iter(self.dice.normal(size=20).tolist()), 0, {"a": 0.0, "b": 0.0}
        self.agents = ["a", "b"]
        return self.seen(self.agents), {}

    def step(self, actions):
        die("actor-dies", 3)
        self.t += 1
        card = next(self.coming)
        for name, action in actions.items():
            self.points[name] += (int(action) - 1) * card
        were, over = self.agents, {name: self.t > (6 if name == "a" else 8) for name in self.agents}
        self.agents = [name for name in were if not over[name]]
        return self.seen(were), {name: self.points[name] for name in were}, over, dict.fromkeys(were, False), {}

    def close(self): ...


class Pushed(gymnasium.Wrapper):
    def step(self, action):
        die("actor-dies", 3)
        return super().step(action)


class Games(gymnasium.vector.VectorWrapper):
    def step(self, actions):
        die("actor-dies", 3)
        return super().step(actions)


def games(num_envs):  # Atari by ale_py's vector environment, as an id gives it but for the wrapper
    frames = 4 * 30
    few = {"img_height": 14, "img_width": 14, "stack_num": 2, "noop_max": 5, "max_num_frames_per_episode": frames}
    return Games(gymnasium.make_vec("ALE/Pong-v5", num_envs, "vector_entry_point", reward_clipping=False, **few))


class Dying(Around):
    def step(self):
        die("coordinator-dies", 8)
        return super().step()


own = {"around": [Dying], "snapshot_every": 0, "stagger": True}
small = {"num_envs": 4, "hidden": (16,), "clients": 2, **own}
poles = Reinforcement(lambda num_envs: Poles(num_envs), method="dqn", rollout_length=8, total_timesteps=64 * 20,
                      learning_starts=100, batch_size=16, replay_ratio=0.25, replay="prioritized", **small)
walk = Reinforcement(Walk, method="ppo", rollout_length=16, total_timesteps=128 * 20, memory="gru", memory_size=8,
                     norm_obs=True, norm_reward=True, **small)
pushed = Reinforcement(lambda: Pushed(gymnasium.make("Pendulum-v1")), method="sac", rollout_length=8,
                       total_timesteps=64 * 16, batch_size=16, replay_ratio=0.25, **small)
twins = Reinforcement(lambda: Pushed(gymnasium.make("Pendulum-v1")), method="td3", rollout_length=8,
                      total_timesteps=64 * 16, batch_size=16, replay_ratio=0.25, **small)
of_ppo = {"method": "ppo", "rollout_length": 32, "total_timesteps": 256 * 16, **small}
lander = Reinforcement(lambda: Pushed(gymnasium.make("LunarLander-v3")), **of_ppo)
fewer = {**of_ppo, "num_envs": 2, "total_timesteps": 128 * 11, "preset": "none"}
walker = Reinforcement("BipedalWalker-v3", time_limit=50, **fewer)
grid = Reinforcement(lambda: Pushed(gymnasium.make("MiniGrid-Empty-5x5-v0", max_steps=40)), **of_ppo)
apart = Reinforcement(lambda: Pushed(gymnasium.make("LunarLander-v3")), step_timeout=50, double_buffer=True, **of_ppo)
cards = Reinforcement(Parallel(Cards), **of_ppo)
pong = Reinforcement(games, network="mlp", **{**fewer, "rollout_length": 20, "total_timesteps": 80 * 16})
tiny = {"img_height": 14, "img_width": 14, "repeat_action_probability": 0.5}
breakout = Reinforcement("ALE/Breakout-v5", env_kwargs=tiny, time_limit=50, network="mlp", preset="none", frame_stack=3,
                         method="dqn", rollout_length=8, total_timesteps=64 * 16, learning_starts=100, batch_size=16,
                         replay_ratio=0.25, **small)
duel = Reinforcement(Parallel(Cards), opponents=3, opponent_every=3, **of_ppo)
hidden = Reinforcement(Hidden, method="ppo", rollout_length=16, total_timesteps=128 * 11, renew_every=4, **small)
"""
BESIDE = ("_seconds", "_bytes")  # end the names of metrics that follow clocks, and from where arrays came


def cli(*words: str) -> int:
    """The exit code of a command in a process of its own: a copy of this one, which need not import."""
    return os.waitstatus_to_exitcode(os.waitpid(forked(lambda: main(list(words))), 0)[1])


def learned(metrics: Any) -> dict[str, Any]:
    beside = {"version", "seconds", "steps", "contributions", "actors", "time"}
    return {name: value for name, value in metrics.items() if name not in beside and not name.endswith(BESIDE)}


NEEDS = {"lander": "Box2D", "walker": "Box2D", "apart": "Box2D", "grid": "minigrid", "pong": "ale_py", "breakout": "ale_py"}
IMPORTS = {"grid": "import minigrid\n", "pong": "import ale_py\n"}
OF_THEIR_OWN = ("walker", "apart", "breakout")  # whose steps are not the actor's, or not in this file


@pytest.mark.parametrize(
    "name",
    ["poles", "walk", "pushed", "twins", "lander", "walker", "grid", "apart", "cards", "duel", "pong", "breakout"],
)
def test_a_run_that_lost_an_actor_and_its_coordinator_has_the_bits_of_one_that_did_not(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.py").write_text(IMPORTS.get(name, "") + JOB)
    job = find(f"{tmp_path}/job.py:{name}")
    job.prepare()
    whole = run(job, 0)
    job.problem.close()
    for sign in ("coordinator-dies", "actor-dies")[: 1 + (name not in OF_THEIR_OWN)]:
        (tmp_path / sign).touch()
    words = ("eval_episodes=0", "--run-dir", "run", "--actors", "2", "--quiet")
    assert cli("simulate", f"job.py:{name}", *words) == -signal.SIGKILL
    assert cli("resume", "run", "--quiet") == 0
    assert not list(tmp_path.glob("*-dies"))
    assert "begin" not in capfd.readouterr().err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["weights_sha256"] == whole.sha256
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["version"] for row in rows] == [version for version, _ in whole.seen.steps]
    assert [learned(row["metrics"]) for row in rows] == [learned(metrics) for _, metrics in whole.seen.steps]


def test_environments_without_a_state_go_on_alike_where_all_begin_anew_and_say_so_elsewhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.py").write_text(JOB)
    job = find(f"{tmp_path}/job.py:hidden").configured({"eval_episodes": 0})
    whole = shoal.run(job, actors=0, folder=tmp_path / "whole")
    for last in (8, 6):
        folder = tmp_path / f"{last}"
        shutil.copytree(tmp_path / "whole", folder)
        for file in folder.glob("checkpoints/*"):
            if int(file.stem) > last:
                file.unlink()
        assert sorted(int(file.stem) for file in folder.glob("checkpoints/*")) == [4, 8][: 1 + (last == 8)]
        again = Run(folder, job, named=False).resume()
        assert again.snapshot().weights.sha256() == whole.snapshot().weights.sha256()
    assert "begin new episodes" not in capfd.readouterr().err
    plain = find(f"{tmp_path}/job.py:hidden").configured({"eval_episodes": 0, "renew_every": 0, "total_timesteps": 300})
    first = shoal.run(plain, actors=0, folder=tmp_path / "plain")
    first.resume(settings={"total_timesteps": 600})
    why = "Hidden.coming is builtins.range_iterator; an episode that was played again did not show what it had shown"
    assert f"their state cannot be kept ({why})" in (first.folder / "log.txt").read_text()


def test_a_run_that_ended_goes_on_as_if_its_end_had_been_later(tmp_path: Path) -> None:
    made = shoal.Reinforcement("CartPole-v1", method="a2c", num_envs=4, total_timesteps=1000, anneal_lr=False, eval_episodes=0)
    half = shoal.run(made, actors=0, folder=tmp_path / "half")
    whole = shoal.run(made, actors=0, settings={"total_timesteps": 2000}, folder=tmp_path / "whole")
    more = half.resume(settings={"total_timesteps": 2000})
    assert more.snapshot().weights.sha256() == whole.snapshot().weights.sha256()
    assert [learned(row["metrics"]) for row in more.dir.rows()] == [learned(row["metrics"]) for row in whole.dir.rows()]
