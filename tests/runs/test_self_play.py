"""Self-play: opponents are past versions, ratings are Elo's, and a run goes on with both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import shoal
from shoal import Reinforcement
from shoal.actors.workers import lives
from shoal.aggregators.around.lives import Lives
from shoal.aggregators.around.selfplay import FIRST, K, SelfPlay, elo
from shoal.envs.agents import Parallel
from shoal.envs.spaces import LIFE
from shoal.jobs.job import Job
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.work import Contribution, Moved, Task, Work


class Race:
    """Both choose once a step for 4 steps; who chose action 1 more often wins (+1, -1; a draw pays 0). A policy that never drew
    action 1 loses against any that does."""

    possible_agents = ("a", "b")

    def observation_space(self, agent: str) -> Any:
        return gymnasium.spaces.Box(-4, 4, (2,), np.float32)

    def action_space(self, agent: str) -> Any:
        return gymnasium.spaces.Discrete(3)

    def _seen(self) -> dict[str, Any]:
        lead = self.points["a"] - self.points["b"]
        return {"a": np.array([self.t, lead], np.float32), "b": np.array([self.t, -lead], np.float32)}

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.t, self.points, self.agents = 0, {"a": 0, "b": 0}, ["a", "b"]
        return self._seen(), {}

    def step(self, actions: dict[str, int]) -> Any:
        self.t += 1
        for name, action in actions.items():
            self.points[name] += int(action == 1)
        over = self.t == 4
        lead = np.sign(self.points["a"] - self.points["b"]) if over else 0
        self.agents = [] if over else ["a", "b"]
        none = {"a": False, "b": False}
        return self._seen(), {"a": float(lead), "b": -float(lead)}, {"a": over, "b": over}, none, {}

    def close(self) -> None: ...


class Counting:
    """An aggregator whose weights are the number of its steps."""

    linear = False

    def __init__(self) -> None:
        self.n = 0

    def weights(self) -> Bundle:
        return Bundle.pack({"w": np.array([self.n], np.float32)})

    def fold(self, contribution: Contribution) -> None: ...

    def step(self) -> Moved:
        self.n += 1
        return Moved({"loss": 0.5})

    def state(self) -> dict[str, Any]:
        return {"n": np.array([self.n])}

    def load(self, weights: Bundle, state: Any) -> None:
        self.n = int(state["n"][0])


def played(task: Task, *returns: float) -> Contribution:
    return Contribution(task, 0, 0, Work(None, samples={"return": returns}))


def test_a_win_against_an_equal_is_worth_half_of_k() -> None:
    pool = SelfPlay(Counting(), opponents=2, every=1)
    task = Task(0, 0, (0,))
    assert pool.brief(task)["w"].tolist() == [0]
    pool.fold(played(task, 1.0, 1.0, 0.0, -1.0))  # 2.5 of 4 points, where 2 were expected
    moved = pool.step()
    assert moved.metrics["elo"] == pytest.approx(FIRST + K * (0.625 - 0.5))
    assert moved.metrics["win_rate"] == 0.625
    assert moved.metrics["loss"] == 0.5


def test_version_0_stays_and_the_oldest_of_the_others_makes_room() -> None:
    pool = SelfPlay(Counting(), opponents=3, every=2)
    for _ in range(9):
        pool.step()
    assert sorted(pool.pool) == [0, 6, 8]
    assert [pool.pool[version]["w"][0] for version in (0, 6, 8)] == [0, 6, 8]


def test_pool_and_ratings_survive_a_restart() -> None:
    pool = SelfPlay(Counting(), opponents=3, every=1, seed=4)
    for index in range(5):
        task = Task(index, 0, (0,))
        pool.brief(task)
        pool.fold(played(task, 1.0))
        pool.step()
    again = SelfPlay(Counting(), opponents=3, every=1, seed=4)
    again.load(pool.weights(), pool.state())
    assert (again.rating, again.ratings, sorted(again.pool)) == (pool.rating, pool.ratings, sorted(pool.pool))
    assert again.pool[4]["w"].tolist() == [4]
    assert again.brief(Task(7, 1, (0,)))["w"].tolist() == pool.brief(Task(7, 1, (0,)))["w"].tolist()
    assert elo(pool.state())[0][1] == max(pool.ratings.values())


def test_in_a_stream_games_go_on_in_another_actor_however_many_briefs_the_first_one_had() -> None:
    arrays: dict[str, Any] = {"x": ("f4", (1,))}
    some, told = Layout.of(arrays), Layout.of({**arrays, LIFE: ("u1", (32,))})
    pool = SelfPlay(Lives(Counting(), 32, some), opponents=2, every=1)
    task = Task(0, 0, (5,))

    def bring(number: int) -> None:
        bundle = Bundle.zeros(told)
        bundle[LIFE][...] = number
        pool.fold(Contribution(task, 0, 0, Work(bundle)))
        pool.step()

    def life(briefed: bool) -> list[int]:
        brief = pool.brief(replace(task, briefed=briefed))
        return sorted({*brief[LIFE].tolist()}) if LIFE in brief.layout.by_name else []

    bring(1)
    assert life(briefed=False) == [1]
    for number in range(2, 20):
        bring(number)
        assert life(briefed=True) == []  # it goes on by itself
    assert life(briefed=False) == [19]


class Wide(Race):
    """A race of which an agent sees 100 numbers."""

    def observation_space(self, agent: str) -> Any:
        return gymnasium.spaces.Box(-4, 4, (100,), np.float32)

    def _seen(self) -> dict[str, Any]:
        return {name: np.pad(seen, (0, 98)) for name, seen in super()._seen().items()}


@pytest.mark.parametrize("opponents", [0, 3])
def test_a_life_has_room_for_both_sides_of_its_games(opponents: int) -> None:
    settings = {"num_envs": 64, "rollout_length": 3, "memory": "lstm", "memory_size": 32, "opponents": opponents}
    duel = Reinforcement(Parallel(Wide), method="ppo", **settings)
    assert (duel.problem.sides, duel.configured({"opponents": 0}).problem.sides) == (2 if opponents else None, None)
    assert "sides" not in duel.options()
    worker = duel.worker()
    bundle = worker.run(duel.problem.first(1)[0], 0, Task(0, 0, (0,))).bundle
    worker.close()
    assert bundle is not None
    size = duel.problem.life(64)
    assert lives.heard(Bundle(lives.layout(size), bundle["life"])).packed


SOME: dict[str, Any] = {"num_envs": 16, "rollout_length": 16, "lr": 0.01, "clients": 2, "opponents": 3, "opponent_every": 3}


def job(**settings: Any) -> Job:
    return Reinforcement(Parallel(Race), **{"method": "ppo", "total_timesteps": 10_000, **SOME, **settings})


def test_a_policy_becomes_stronger_than_its_past(tmp_path: Path) -> None:
    run = shoal.run(job(), actors=1, folder=tmp_path / "run", show=False)
    assert run.metrics["elo"] > FIRST + 50
    table = run.elo()
    assert table[-1][0] == 0  # version 0 is the weakest
    assert len(table) == 3


def test_a_run_with_opponents_has_the_same_bits_for_any_number_of_actors_and_after_a_stop(tmp_path: Path) -> None:
    short = {"total_timesteps": 4_096, "eval_episodes": 0}
    one, two = (shoal.run(job(**short), actors=n, folder=tmp_path / str(n), show=False) for n in (1, 2))
    at_3: Any = {"stop_when": lambda row: row["version"] >= 3, "folder": tmp_path / "stopped", "show": False}
    stopped = shoal.run(job(**short), actors=2, **at_3)
    assert 3 <= len(stopped.dir.rows()) < 8
    more = stopped.resume(actors=1)
    assert more.summary["weights_sha256"] == one.summary["weights_sha256"] == two.summary["weights_sha256"]
    assert more.elo() == one.elo() == two.elo()
    told = [[(row["metrics"]["elo"], row["metrics"].get("win_rate")) for row in each.dir.rows()] for each in (one, two, more)]
    assert told[0] == told[1] == told[2]
    assert len(told[0]) >= 8


@pytest.mark.parametrize(
    ("env", "settings", "text"),
    [
        ("CartPole-v1", {}, "opponents=3: self-play needs a game of two agents"),
        (Parallel(Race, policies="separate"), {}, "opponents=3: both sides play by one policy"),
        (Parallel(Race), {"opponents": 0}, "opponent_every=3: without opponents it has no effect"),
    ],
)
def test_what_cannot_be_played_is_refused(env: Any, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text) as told:
        Reinforcement(env, method="ppo", **{**SOME, **settings})
    assert "\n" not in str(told.value)


def test_a_method_without_trajectories_has_no_opponent() -> None:
    with pytest.raises(UserError, match="opponents=3: method=es sends no trajectories of games; method=ppo "):
        Reinforcement(Parallel(Race), method="es", opponents=3)


def test_a_game_of_three_has_no_opponent() -> None:
    class Three(Race):
        possible_agents = ("a", "b", "c")  # type: ignore[assignment]

    with pytest.raises(UserError, match="opponents=3: Three has 3 agents; self-play is for games of two"):
        Reinforcement(Parallel(Three), method="ppo", **SOME)
