"""Episodes of a stream go on after kill -9 of an actor and of the coordinator: they do not begin anew."""

from __future__ import annotations

import signal
from collections import defaultdict
from pathlib import Path

import pytest
from test_exact_resume import cli

JOB = """
import os
import signal
from pathlib import Path

import gymnasium
import numpy as np

from shoal import Parallel, Reinforcement
from shoal.aggregators.around import Around

HERE = Path(__file__).parent
BEFORE = HERE / "before"  # `folded` at the death before
FOLDED = HERE / "folded"  # a line for each trajectory that was learned from: coordinator, client, first observation


def die(sign):  # when both clients have brought three more trajectories than at the death before
    if not (HERE / sign).exists() or not FOLDED.exists():
        return
    lines = FOLDED.read_text().splitlines()
    since = len(BEFORE.read_text().splitlines()) if BEFORE.exists() else 0
    clients = [line.split()[1] for line in lines[since:]]
    if min(clients.count("0"), clients.count("1")) > 2:
        (HERE / sign).unlink(missing_ok=True)
        BEFORE.write_text("\\n".join(lines))
        os.kill(os.getpid(), signal.SIGKILL)


class Endless(gymnasium.Env):  # sees how many steps it made
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.made = 0
        return np.zeros(1), {}

    def step(self, action):
        die("actor-dies")
        self.made += 1
        return np.array([self.made / 1000]), 1.0, False, False, {}


class Game:  # of two, that never ends and in which each sees how many steps it made
    possible_agents = ("a", "b")

    def observation_space(self, agent):
        return Endless.observation_space

    def action_space(self, agent):
        return Endless.action_space

    def reset(self, seed=None, options=None):
        self.made, self.agents = 0, ["a", "b"]
        return dict.fromkeys(self.agents, np.zeros(1)), {}

    def step(self, actions):
        die("actor-dies")
        self.made += 1
        none = dict.fromkeys(self.agents, False)
        seen = {name: np.array([self.made / 1000]) for name in self.agents}
        return seen, dict.fromkeys(self.agents, 0.0), none, none, {}

    def close(self): ...


class Watching(Around):
    def fold(self, contribution):
        seen = contribution.bundle["observation"][0, 0, 0]
        with FOLDED.open("a") as file:
            file.write(f"{os.getpid()} {contribution.task.clients[0]} {round(float(seen) * 1000)}\\n")
        super().fold(contribution)

    steps = 0

    def step(self):
        if not (HERE / "actor-dies").exists():
            die("coordinator-dies")
        self.steps += not (HERE / "coordinator-dies").exists()
        if self.steps == 20:  # of the run's second life, which is long enough now
            os.kill(os.getpid(), signal.SIGINT)
        return super().step()


small = {"num_envs": 2, "rollout_length": 8, "hidden": (8,), "around": [Watching], "snapshot_every": 0, "batch": 1}
impala = Reinforcement(Endless, method="impala", total_timesteps=16 * 3000, tune_envs=False, **small)
duel = Reinforcement(Parallel(Game), method="impala", opponents=2, opponent_every=1, total_timesteps=16 * 3000, **small)
replay = {"learning_starts": 64, "batch_size": 8, "replay_ratio": 0.1}
apex = Reinforcement(Endless, method="apex", total_timesteps=16 * 3000, **replay, **small)
"""


def begins(folder: Path) -> list[dict[str, list[int]]]:
    """For each life of the coordinator: client -> first observations of its trajectories, in the order of their arrival."""
    lives: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for line in (folder / "folded").read_text().splitlines():
        coordinator, client, seen = line.split()
        lives[coordinator][client].append(int(seen))
    return list(lives.values())


@pytest.mark.parametrize("name", ["impala", "duel", "apex"])
def test_episodes_go_on_after_the_loss_of_an_actor_and_of_the_coordinator(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.py").write_text(JOB)
    for sign in ("coordinator-dies", "actor-dies"):
        (tmp_path / sign).touch()
    words = ("eval_episodes=0", "--run-dir", "run", "--actors", "2", "--quiet")
    assert cli("simulate", f"job.py:{name}", *words) == -signal.SIGKILL
    assert cli("resume", "run", "--quiet") >= 0
    assert not list(tmp_path.glob("*-dies"))
    first, second = begins(tmp_path)
    anew = [first[client].count(0) for client in first], [second[client].count(0) for client in second if client in first]
    assert set(anew[0]) == {1}  # each client's episode began once, and went on in another actor
    assert set(anew[1]) == {0}
