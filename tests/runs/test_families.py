"""Whole short runs on the families of environments that come with an extra: MuJoCo, PettingZoo, MiniGrid."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest

import shoal
from shoal.envs.agents import parallel_of
from shoal.jobs.catalog import find
from shoal.jobs.job import Job
from shoal.protocol.errors import UserError


def played(job: Job, folder: Path, **settings: Any) -> shoal.Run:
    return shoal.run(job, settings=settings, actors=1, folder=folder / "run", show=False)


def test_ppo_plays_an_environment_of_mujoco_by_its_preset(tmp_path: Path) -> None:
    pytest.importorskip("mujoco", reason="pip install 'shoal[mujoco]'")
    run = played(find("gymnasium:InvertedPendulum-v5"), tmp_path, total_timesteps=8_192, eval_episodes=5)
    assert 0 < run.summary["steps"] <= 8_192  # a row that only resets is no step
    assert run.job.plain()["norm_obs"]  # of the preset
    rows = [row["metrics"] for row in run.history]
    assert {round(row["length_mean"] - row["return_mean"], 9) for row in rows} == {1.0}  # a step pays 1, the last one 0
    assert round(run.metrics["eval/length_mean"] - run.metrics["eval/return_mean"], 9) == 1.0
    seen = float(run.weights["normal.observation_count"])
    assert seen == run.summary["steps"]


def test_ppo_plays_a_game_of_pettingzoo_by_one_policy_for_both_players(tmp_path: Path) -> None:
    pytest.importorskip("pettingzoo", reason="pip install 'shoal[multiagent]'")
    pytest.importorskip("pygame", reason="pip install 'pettingzoo[classic]'")  # every game imports it
    job = find("pettingzoo:classic.rps_v2")
    run = played(job, tmp_path, method="ppo", total_timesteps=2_048, num_envs=8, rollout_length=32, eval_episodes=4)
    assert 0 < run.summary["steps"] <= 2_048
    returns = [row["metrics"]["return_mean"] for row in run.history]
    assert returns == [0.0] * len(returns) != []  # what one player wins, the other one loses
    assert run.video(tmp_path / "seen.gif").stat().st_size > 0


def test_what_pettingzoo_has_not_is_told_in_one_line() -> None:
    pytest.importorskip("pettingzoo", reason="pip install 'shoal[multiagent]'")
    for name, said in (
        ("classic.tictactoe_v3", "has no parallel form of it; a game whose agents take turns is not supported"),
        ("sisl.pursuit_v1", "v1"),
        ("sisl.nothing_v0", "nothing"),
    ):
        with pytest.raises(UserError, match=rf"^env=pettingzoo:{name}: .*{said}") as told:
            find(f"pettingzoo:{name}")
        assert "\n" not in str(told.value)


def test_a_game_that_an_older_pettingzoo_lacks_is_told_from_a_package_that_a_game_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = ModuleType("pettingzoo")  # before 1.27: no registry
    older.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, "pettingzoo", older)
    (tmp_path / "board").mkdir()
    (tmp_path / "board" / "chess_v1.py").write_text("import a_package_of_pieces")
    for name, fix in (
        ("chess_v1", r"a_package_of_pieces'; pip install 'pettingzoo\[board\]' brings what its games need$"),
        ("chess_v2", "chess_v2'; the pettingzoo that is installed has no game of this name and version$"),
    ):
        with pytest.raises(UserError, match=rf"^env=pettingzoo:board\.{name}: No module named '.*{fix}"):
            parallel_of(f"pettingzoo:board.{name}")
    monkeypatch.delitem(sys.modules, "pettingzoo.board")


def test_ppo_plays_minigrid_by_its_preset(tmp_path: Path) -> None:
    pytest.importorskip("minigrid", reason="pip install 'shoal[minigrid]'")
    run = played(find("gymnasium:MiniGrid-Empty-5x5-v0"), tmp_path, total_timesteps=2_048, eval_episodes=2)
    assert 0 < run.summary["steps"] <= 2_048
    means = [row["metrics"]["return_mean"] for row in run.history if "return_mean" in row["metrics"]]
    assert all(0 <= mean <= 1 for mean in means)  # an episode pays at most 1, for the goal
    assert run.policy().act(gymnasium.make("MiniGrid-Empty-5x5-v0").reset(seed=0)[0]) in range(7)
    assert all(np.isfinite(each).all() for each in run.weights.values())
