"""Lags as histograms: those of each version in its row, and in status.json those of the newest version and of each cause."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import shoal
from shoal import Reinforcement
from shoal.coordinator.causes import CAUSES

SMALL: dict[str, Any] = {"num_envs": 4, "rollout_length": 16, "eval_episodes": 0}


def status_of(run: shoal.Run) -> dict[str, Any]:
    """What status.json says of the run's actors, tasks and lags."""
    found: dict[str, Any] = json.loads(run.dir.status_file.read_text())["roll"]
    return found


def versions(pairs: Any) -> int:
    """The versions of all trajectories of a histogram together."""
    return sum(lag * many for lag, many in pairs)


def test_rounds_that_overlap_have_a_lag_of_1_but_for_the_first(tmp_path: Path) -> None:
    job = Reinforcement("CartPole-v1", method="ppo", overlap=True, clients=3, total_timesteps=3 * 64 * 6, **SMALL)
    run = shoal.run(job, actors=2, transport="ipc", folder=tmp_path / "run", show=False)
    assert [row.get("lags") for row in run.history] == [None, *[[[1, 3]]] * 5]
    status = status_of(run)
    assert status["batch_lags"] == [[1, 3]]
    assert status["lags"] in ([[0, 3], [1, 15 + more]] for more in range(4))  # of the round that made no version any more
    causes = status["lag_causes"]
    assert tuple(causes) == CAUSES
    assert [sum(many for _, many in pairs) for pairs in causes.values()] == [18] * 4
    assert sum(map(versions, causes.values())) == 15


def test_the_histograms_of_a_stream_are_those_of_its_rows(tmp_path: Path) -> None:
    job = Reinforcement("CartPole-v1", method="impala", batch=2, total_timesteps=2 * 64 * 30, **SMALL)
    run = shoal.run(job, actors=2, transport="ipc", folder=tmp_path / "run", show=False)
    rows, whole = list(run.history), Counter[int]()
    for row in rows:
        lags = Counter(dict(row.get("lags", [[0, 2]])))
        each = sorted(lags.elements())
        assert len(each) == 2
        assert row["lag"] == [each[0], sum(each) / 2, each[-1]]
        whole += lags
    status = status_of(run)
    assert status["batch_lags"] == rows[-1].get("lags", [[0, 2]])
    assert whole <= Counter(dict(status["lags"]))  # which counts trajectories that made no version any more, too
    assert sum(map(versions, status["lag_causes"].values())) == versions(whole.items())


def test_a_run_without_environments_has_no_histograms_of_trajectories(tmp_path: Path) -> None:
    run = shoal.run("digits", settings={"rounds": 2, "clients": 4, "cohort": 2}, actors=0, folder=tmp_path / "run", show=False)
    assert not {"batch_lags", "lag_causes"} & set(status_of(run))
    assert not any("lags" in row for row in run.history)
