"""Methods that learn from a replay, as whole runs: the same bits over sockets, on a stream, and from a snapshot on."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from whole import run

import shoal
from shoal.coordinator.keeping.recording import recover
from shoal.coordinator.keeping.store import Store
from shoal.coordinator.reports import Report
from shoal.jobs.catalog import find
from shoal.jobs.job import Job
from shoal.jobs.reinforcement import Reinforcement
from shoal.nets.policies import ActorCritic
from shoal.nets.q import QNetwork
from shoal.protocol.errors import UserError
from shoal.protocol.work import Task

SMALL: dict[str, Any] = {
    "total_timesteps": 1_500,
    "num_envs": 4,
    "rollout_length": 16,
    "learning_starts": 200,
    "batch_size": 16,
    "hidden": (16,),
    "replay_ratio": 0.25,
}


def job(method: str, **settings: Any) -> Job:
    return Reinforcement("CartPole-v1", method=method, **{**SMALL, **settings})


@pytest.mark.parametrize("settings", [{}, {"replay": "prioritized", "n_step": 3, "dueling": True, "clients": 2}])
def test_dqn_has_the_same_bits_over_sockets_as_in_the_plain_loop(tmp_path: Path, settings: dict[str, Any]) -> None:
    made = job("dqn", **settings)
    outcome = run(made, settings.get("clients", 1), f"ipc://{tmp_path}/hub")
    assert outcome.finish.reason == "done"
    plain = run(made, 0)
    assert outcome.sha256 == plain.sha256
    told = plain.seen.steps[-1][1]
    assert told["updates"] == (plain.core.facts.steps - 200) // 4
    assert told["replay_rows"] == plain.core.facts.steps


@pytest.mark.parametrize("settings", [{"method": "apex"}, {"method": "r2d2", "memory": "gru", "memory_size": 8}])
def test_streams_of_two_actors_learn_at_their_ratio(tmp_path: Path, settings: dict[str, Any]) -> None:
    outcome = run(job(**settings), 2, f"ipc://{tmp_path}/hub")
    assert outcome.finish.reason == "done"
    told = outcome.seen.steps[-1][1]
    assert told["updates"] == (outcome.core.facts.steps - 200) // 4
    assert told["value_loss"] >= 0


def test_epsilon_falls_with_the_steps_that_came_before() -> None:
    method = job("dqn", total_timesteps=10_000, exploration_fraction=0.64, exploration_final_eps=0.2).method
    words = [getattr(method, "words")(Task(version, 0, (0,)))["epsilon"] for version in (0, 50, 100, 150)]  # noqa: B009
    assert words == pytest.approx([1.0, 0.6, 0.2, 0.2])


class Reports:
    """An observer that remembers what a run says."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def stepped(self, *told: object) -> None: ...

    def moved(self, *told: object) -> None: ...

    def report(self, report: Report) -> None:
        self.texts.append(report.text)


def test_a_resumed_run_goes_on_from_its_replay(tmp_path: Path) -> None:
    """Environments begin anew after a stop, so 2 N versions are not N and N. But what two runs make of one snapshot is the
    same, and rows and gradient steps count on. The run says how much memory the replay takes."""
    reports = Reports()
    first = shoal.run(job("dqn", replay="prioritized"), actors=0, folder=tmp_path / "a", observers=[reports])
    assert any(re.match(r"the replay takes up to \d\.\d MB .* for 100,000 transitions$", text) for text in reports.texts)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    runs = [first, shoal.load(tmp_path / "b", job=first.job)]
    ends = [run.resume(settings={"total_timesteps": 3_000}) for run in runs]
    mine, theirs = (end.weights for end in ends)
    assert all(np.array_equal(array, theirs[name]) for name, array in mine.items())
    last = json.loads((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["metrics"]["replay_rows"] == last["steps"] > 2_500
    assert last["metrics"]["updates"] == (last["steps"] - 200) // 4


class Crash:
    """An observer that copies the run's folder when a version is told, as it would lie there after kill -9."""

    def __init__(self, folder: Path, version: int) -> None:
        self.folder, self.version = folder, version

    def stepped(self, version: int, *told: object) -> None:
        if version == self.version:
            shutil.copytree(self.folder, self.folder.with_name("crashed"))

    def moved(self, *told: object) -> None: ...

    def report(self, *told: object) -> None: ...


JOURNALED: dict[str, dict[str, Any]] = {
    "dqn": {"replay": "prioritized"},
    "apex": {"replay": "prioritized"},
    "r2d2": {"memory": "gru", "memory_size": 8, "burn_in": 4},
    "sac": {"env": "Pendulum-v1", "total_timesteps": 1_000},
    "td3": {"env": "Pendulum-v1", "total_timesteps": 1_000, "replay": "prioritized"},
}


@pytest.mark.parametrize(
    ("method", "actors"), [*((method, 0) for method in JOURNALED), ("dqn", 2), ("apex", 2), ("r2d2", 2), ("sac", 2)]
)
def test_a_journal_with_payloads_replays_the_order_of_arrival_and_every_draw(tmp_path: Path, method: str, actors: int) -> None:
    """The only snapshot is of version 1: the weights of version 12 are made anew from the journal, with the published
    digest. While the folder is copied, a run with actors goes on."""
    own = {"journal": "payload", "snapshot_every": 3600.0, "learning_starts": 100, **JOURNALED[method]}
    kept = Reinforcement(own.pop("env", "CartPole-v1"), method=method, **{**SMALL, **own})
    shoal.run(kept, actors=actors, folder=tmp_path / "run", observers=[Crash(tmp_path / "run", 12)], show=False)
    crashed = tmp_path / "crashed"
    anew = kept.aggregator("cpu")
    layouts = {layout.digest: layout for layout in kept.layouts(anew.weights().layout)}
    said: list[str] = []
    found, _ = recover(crashed, "", Store(crashed), anew, layouts, said.append)
    assert (found.version == 12 if not actors else found.version >= 12, said) == (True, [])
    assert getattr(anew, "updates") > 100  # noqa: B009
    assert anew.weights().sha256() == found.made[found.version]


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("dqn", {"buffer_size": 63}, r"buffer_size=63: must hold one trajectory, num_envs x rollout_length = 64 transitions"),
        ("dqn", {"priority_alpha": 0.5}, r"priority_alpha=0.5: priority_alpha is a setting of replay=prioritized"),
        ("dqn", {"memory": "lstm"}, r"memory=lstm: the job's method learns without memory"),
        ("r2d2", {"memory": "gru", "burn_in": 16}, r"burn_in=16: must be at most rollout_length - 1 = 15"),
        ("sac", {"alpha": 0.5}, r"alpha=0.5: alpha is a setting of autotune=false; this job has autotune=true"),
        ("dqn", {"ent_coef": 0.1}, r"ent_coef=0.1: ent_coef is a setting of impala"),
    ],
)
def test_settings_that_cannot_work_are_refused(method: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        job(method, **settings)


@pytest.mark.parametrize(
    ("settings", "learns"),
    [
        ({"learning_starts": 400, "total_timesteps": 640}, True),
        ({"learning_starts": 640, "total_timesteps": 640}, False),
        ({"learning_starts": 0, "total_timesteps": 640, "replay_ratio": 0.0015}, False),
        ({"learning_starts": 60, "total_timesteps": 10}, True),  # a version is 64 steps
    ],
)
def test_a_run_that_makes_no_gradient_step_says_so(tmp_path: Path, settings: dict[str, Any], learns: bool) -> None:
    short = job("dqn", **{**SMALL, "replay_ratio": 1.0, **settings})
    told = list(short.method.notes(short.problem, short.aggregator("cpu")))
    assert len(told) == (1 if learns else 2)
    if not learns:
        assert told[1].startswith("no gradient step will be made: the run has 640 environment steps at most, learning_starts=")
    run = shoal.run(short, actors=0, folder=tmp_path / "run", show=False)
    assert (run.metrics["updates"] > 0) == learns


def test_a_network_without_memory_is_refused_before_the_run_has_a_folder() -> None:
    with pytest.raises(UserError, match="memory=none: r2d2 learns networks with memory; memory=lstm or gru"):
        job("r2d2").aggregator("cpu")


def test_continuous_actions_are_refused_before_the_run_has_a_folder() -> None:
    with pytest.raises(UserError, match=r"actions are Box: a Q-network gives a value for each of finitely many actions"):
        find("gymnasium:Pendulum-v1").configured({"method": "dqn", "buffer_size": 100_000}).aggregator("cpu")


class Pair(gymnasium.Env[Any, Any]):
    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = gymnasium.spaces.MultiDiscrete([2, 3])

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros((64, 64, 3), np.uint8), {}


@pytest.mark.parametrize(
    ("env", "settings", "says"),
    [
        (Pair, {"method": "dqn"}, "actions are MultiDiscrete: .*; use method=ppo or impala"),
        (Pair, {"method": "es"}, "method=es: perturbs a perceptron, and the .* are pictures; network=mlp flattens them"),
        (
            "CartPole-v1",
            {"method": "ppo", "rollout_length": 10**12},
            r"rollout_length=1000000000000: a trajectory takes",
        ),
        ("CartPole-v1", {"num_envs": 10**10}, "num_envs=10000000000 rollout_length=32: a trajectory takes .*; give a smaller"),
        (
            "CartPole-v1",
            {"method": "ppo", "clients": 10**8},
            r"^clients=100000000: the trajectories that make a version take .* GB of memory, .*; give a smaller clients, num",
        ),
        ("CartPole-v1", {"batch": 10**8}, r"^batch=100000000: the trajectories that make a version take"),
        (
            "CartPole-v1",
            {"policy": QNetwork, "method": "ppo"},
            r"\(a Q-network, which .*, is for dqn or apex\)",
        ),
    ],
)
def test_what_a_method_cannot_serve_is_refused_in_one_line_when_the_job_is_read(
    env: Any, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says) as refused:
        Reinforcement(env, **settings).check_parts()
    assert "\n" not in str(refused.value)


BOXED: dict[str, Any] = {**SMALL, "total_timesteps": 500, "rollout_length": 8}


@pytest.mark.parametrize("method", ["sac", "td3"])
def test_sac_and_td3_have_the_same_bits_over_sockets_as_in_the_plain_loop(tmp_path: Path, method: str) -> None:
    made = Reinforcement("Pendulum-v1", method=method, clients=2, **BOXED)
    outcome = run(made, 2, f"ipc://{tmp_path}/hub")
    plain = run(made, 0)
    assert outcome.sha256 == plain.sha256
    assert plain.seen.steps[-1][1]["updates"] == (plain.core.facts.steps - 200) // 4


@pytest.mark.parametrize("method", ["sac", "td3"])
def test_two_runs_make_the_same_of_a_snapshot_of_sac_or_td3(tmp_path: Path, method: str) -> None:
    first = shoal.run(Reinforcement("Pendulum-v1", method=method, **BOXED), actors=0, folder=tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    runs = [first, shoal.load(tmp_path / "b", job=first.job)]
    mine, theirs = (run.resume(settings={"total_timesteps": 700}).weights for run in runs)
    assert all(np.array_equal(array, theirs[name]) for name, array in mine.items())
    assert set(mine) == {f"actor.{i}.{part}" for i in range(2) for part in ("weight", "bias")}


@pytest.mark.parametrize("method", ["sac", "td3"])
def test_an_environment_that_sac_or_td3_cannot_serve_is_refused_before_the_run_has_a_folder(method: str) -> None:
    with pytest.raises(UserError, match=rf"^method={method}: learns Box actions, .*Discrete.*; method=dqn or method=ppo$"):
        Reinforcement("CartPole-v1", method=method).check_parts()
    with pytest.raises(UserError, match=r"^policy: forward gave \(\(\[1, 1\], \[1\]\), \[1\]\) for 1 observations; expected"):
        Reinforcement("Pendulum-v1", partial(ActorCritic, hidden=(8,)), method=method).check_parts()
