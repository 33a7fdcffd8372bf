"""The best weights of a run, a return at which it ends, and a run that begins with another's weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shoal
from shoal.coordinator.keeping.store import newest
from shoal.coordinator.reports import Progress
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.runs.best import EVERY, Best, Target

SMALL: dict[str, Any] = {"num_envs": 8, "rollout_length": 64, "total_timesteps": 8192, "eval_episodes": 0, "preset": "none"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def job(**settings: Any) -> Any:
    return shoal.Reinforcement("CartPole-v1", method="ppo", **{**SMALL, "clients": 2, **settings})


NOW = Progress(1, "", 0.0, 0.0, 0, 0.0, 0, 0.0, 1)


class Told:
    """A `Best` that is told rows by hand. The weights of version v are [v]."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.now, self.version = 0.0, 0
        self.out: list[int] = []  # for each evaluation that is out, the oldest version that may play
        self.best = Best(job(keep_best=True, **settings), folder, lambda: self.now)
        self.best.follow(lambda: (self.version, Bundle.pack({"w": np.array([self.version], np.float32)})), lambda: self.out)

    def row(self, version: int, played: int = -1, **metrics: float) -> Told:
        self.version = version
        self.best.stepped(
            version, {name.replace("eval_", "eval/"): value for name, value in metrics.items()}, replace(NOW, played=played)
        )
        return self

    def kept(self) -> tuple[int, float] | None:
        self.best.write()
        found = newest(self.best.folder, lambda text: None)
        return (found.version, float(found.weights["w"][0])) if found else None


def test_the_best_of_training_is_kept_and_no_worse_one_replaces_it(tmp_path: Path) -> None:
    told = Told(tmp_path).row(1, return_mean=9.0, episodes=50)  # too few episodes to be believed
    assert told.kept() is None
    told.row(2, return_mean=5.0, episodes=120).row(3, return_mean=7.0, episodes=130).row(4, return_mean=6.0, episodes=140)
    assert told.kept() == (3, 3.0)
    again = Told(tmp_path).row(9, return_mean=6.5, episodes=100)  # a resumed run knows what was best
    assert again.kept() == (3, 3.0)
    assert again.row(10, return_mean=7.5, episodes=200).kept() == (10, 10.0)


def test_an_evaluation_speaks_of_the_weights_that_played(tmp_path: Path) -> None:
    told = Told(tmp_path, eval_every=2, eval_episodes=3)
    told.row(1, played=0, eval_return_mean=2.0)
    assert told.kept() == (0, 0.0)
    told.now += EVERY
    told.row(2).row(3, played=2, eval_return_mean=4.0).row(4).row(5, played=4, eval_return_mean=3.0)
    assert told.kept() == (2, 2.0)
    told.now += EVERY
    assert told.row(6).row(6, played=6, eval_return_mean=9.0).kept() == (6, 6.0)  # the episodes at the end of the run


def test_on_a_stream_evaluations_that_take_long_speak_of_the_weights_that_played(tmp_path: Path) -> None:
    told = Told(tmp_path, eval_every=50, eval_episodes=3, overlap=True)
    told.out = [50]
    for version in range(1, 100):
        told.row(version)
    told.out = [50, 100]  # the next one is given while the first has not come
    for version in range(100, 120):
        told.row(version)
    told.row(120, played=51, eval_return_mean=4.0)
    assert told.kept() == (51, 51.0)
    told.out, told.now = [], EVERY
    told.row(121, played=100, eval_return_mean=5.0)
    assert told.kept() == (100, 100.0)


def test_an_evaluation_that_never_comes_is_credited_to_nobody(tmp_path: Path) -> None:
    told = Told(tmp_path, eval_every=2, eval_episodes=3, overlap=True)
    told.out = [2]
    told.row(2).row(3)
    told.out = []  # it was set aside
    told.row(4).row(5).row(6, played=5, eval_return_mean=1.0)
    assert told.kept() == (5, 5.0)
    told.now += EVERY
    assert told.row(7, played=2, eval_return_mean=8.0).row(8, eval_return_mean=9.0).kept() == (5, 5.0)  # or by several versions
    assert told.best.value == 1.0


def test_weights_that_are_held_for_evaluations_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(tmp_path, eval_every=2, eval_episodes=3, overlap=True)
    monkeypatch.setattr("shoal.runs.best.MOST", 10 * told.best.held[0].data.nbytes)
    told.out = [3]
    for version in range(1, 200):
        told.row(version)
    assert [len(told.best.held), min(told.best.held), max(told.best.held)] == [10, 3, 199]
    assert {3, 4, 198} <= told.best.held.keys()
    told.out = []
    assert sorted(told.row(200).row(201).best.held) == [199, 200, 201]


def test_a_file_is_written_at_most_every_so_often(tmp_path: Path) -> None:
    told = Told(tmp_path).row(1, return_mean=1.0, episodes=100)
    assert newest(told.best.folder, lambda text: None) is not None
    told.row(2, return_mean=2.0, episodes=100)
    assert newest(told.best.folder, lambda text: None).version == 1  # type: ignore[union-attr]
    told.now += EVERY
    told.row(3, return_mean=1.5, episodes=100)
    assert newest(told.best.folder, lambda text: None).version == 2  # type: ignore[union-attr]


def test_a_target_is_of_enough_episodes() -> None:
    target = Target(job(target_return=20.0))
    target.stepped(1, {"return_mean": 30.0, "episodes": 99.0}, NOW)
    assert not target.reason
    target.stepped(2, {"return_mean": 19.9, "episodes": 100.0}, NOW)
    assert not target.reason
    target.stepped(3, {"return_mean": 20.0, "episodes": 100.0}, NOW)
    assert target.reason == "return_mean is 20 at version 3, and target_return=20"


def test_a_target_may_be_below_zero_and_none_is_no_target() -> None:
    below, none = Target(job(target_return=-5.0)), Target(job())
    for one in (below, none):
        one.stepped(1, {"return_mean": -4.0, "episodes": 100.0}, NOW)
    assert below.reason
    assert not none.reason


def test_a_run_ends_at_its_target_and_its_best_weights_are_evaluated(tmp_path: Path) -> None:
    run = shoal.run(job(target_return=15.0, keep_best=True, total_timesteps=10**6), actors=0, folder="run")
    assert run.reason == "done"
    assert run.metrics["return_mean"] >= 15
    assert run.summary["steps"] < 10**5
    assert "target_return=15" in Path("run/log.txt").read_text()
    best = shoal.evaluate(run, episodes=3, best=True)
    assert 0 < best["version"] <= run.snapshot().version
    shoal.export(run, "best.safetensors", best=True)
    again = shoal.run(job(init="best.safetensors", total_timesteps=1), actors=0, folder="again")
    assert again.metrics["return_mean"] > 0


def test_without_best_weights_the_error_says_how_to_have_some() -> None:
    run = shoal.run(job(total_timesteps=1), actors=0, folder="run")
    with pytest.raises(UserError, match="keeps no best weights: a run does so with keep_best=true"):
        shoal.evaluate(run, best=True)


def test_a_run_begins_with_the_weights_of_another() -> None:
    first = shoal.run(job(), actors=0, folder="first")
    last = first.snapshot().weights
    warm = job(init="first", lr=1e-9, clients=1, num_minibatches=1)
    assert warm.problem.first(0)[0].sha256() == last.sha256()
    run = shoal.run(warm, actors=0, folder="warm")
    assert np.abs(run.snapshot().weights.vector() - last.vector()).max() < 1e-6
    assert run.model() is not None
    for path in Path("first").rglob("*"):
        if path.is_file():
            path.unlink()
    assert shoal.evaluate(run, episodes=2)["episodes"] == 2  # the folder that it began with is not asked for again


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"hidden": (32,)},
            r"init=first: the run \(job reinforcement\) has a network of hidden=64,64, and this job's is of hidden=32; "
            r"hidden=64,64 fits, if observations and actions are alike \(array 'actor.0.bias' is float32\[64\]; ",
        ),
        (
            {"memory": "gru"},
            r"has a network of memory=none, and this job's is of memory=gru; memory=none fits, .* \(array '.*' is missing",
        ),
        (
            {"activation": "relu"},
            r"init=first: .* has a network of activation=tanh, and this job's is of activation=relu; activation=tanh fits",
        ),
        (
            {"norm_obs": True},
            r"has a network of norm_obs=false, and this job's is of norm_obs=true; norm_obs=false fits, .* \(array 'normal\.",
        ),
        ({"init": "first/best"}, "init=first/best: the run keeps no best weights, as it does with keep_best=true"),
        ({"init": "first/bets"}, "init=first/bets: no such file or folder; the folder of a run has its newest weights"),
        ({"init": "nowhere"}, "init=nowhere: cannot be read as a .safetensors file"),
        ({"init": "empty"}, "init=empty: holds no weights of a run; give the folder of a run"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(settings: dict[str, Any], says: str) -> None:
    shoal.run(job(total_timesteps=1), actors=0, folder="first")
    Path("empty").mkdir()
    with pytest.raises(UserError, match=says):
        shoal.run(job(**{"init": "first", **settings}), actors=0, folder="second")
    assert not Path("second").exists()


def test_weights_of_another_method_or_environment_are_told_by_both() -> None:
    shoal.run(job(total_timesteps=1), actors=0, folder="first")
    says = r"has a network of method=ppo, and this job's is of method=dqn; method=ppo learns such a network \(array"
    with pytest.raises(UserError, match=says):
        shoal.Reinforcement("CartPole-v1", method="dqn", init="first", preset="none", hidden=(64, 64)).problem.first(0)
    says = r"init=first: the run \(job reinforcement\) has a network with other arrays than this job's: .*\(array"
    with pytest.raises(UserError, match=says):
        shoal.Reinforcement("Acrobot-v1", method="ppo", init="first", preset="none").problem.first(0)
