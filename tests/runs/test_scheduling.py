"""Methods without rounds and selections, in whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shoal
from shoal import Federated
from shoal.envs import datasets
from shoal.envs.datasets import Examples
from shoal.envs.population import Population
from shoal.nets.models import mlp
from shoal.protocol.errors import UserError


def digits(**settings: Any) -> Any:
    usual = {"local_epochs": 1, "lr": 0.3, "rounds": 6, "eval_every": 0}
    return Federated(mlp, datasets.digits, clients=20, **{**usual, **settings})


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "fedasync", "rounds": 20},
        {"method": "fedasync", "staleness_function": "hinge", "rounds": 20},
        {"select": "weighted", "weighting": "users"},
        {"select": "minimize_reuse"},
        {"select": "oort"},
        {"over_selection": 1.5},
    ],
    ids=str,
)
def test_every_schedule_learns_in_the_plain_loop(tmp_path: Path, settings: dict[str, Any]) -> None:
    run = shoal.run(digits(**settings), actors=0, folder=tmp_path / "run", show=False)
    assert run.metrics["accuracy"] > 0.3
    assert run.history[-1]["version"] == run.job.method.rounds  # type: ignore[attr-defined]


def test_steps_by_the_clock_reach_the_end_of_the_run(tmp_path: Path) -> None:
    run = shoal.run(digits(method="fedfix", deadline=0.05, rounds=3), actors=0, folder=tmp_path / "run", show=False)
    assert [row["version"] for row in run.history] == [1, 2, 3]


def test_asynchronous_runs_over_sockets_reach_their_end(tmp_path: Path) -> None:
    run = shoal.run(digits(method="fedasync", rounds=30), actors=2, folder=tmp_path / "run", show=False)
    assert run.summary["contributions"] >= 30
    assert run.metrics["mixing"] <= 0.6


def test_oort_has_the_squares_of_the_losses_and_no_task_of_several_clients(tmp_path: Path) -> None:
    run = shoal.run(digits(select="oort", cohort=3), actors=0, folder=tmp_path / "run", show=False)
    metrics = run.history[0]["metrics"]
    assert metrics["loss_squared"] >= metrics["loss"] ** 2  # the mean of squares is at least the square of the mean
    assert "loss_squared" not in shoal.run(digits(rounds=1), actors=0, folder=tmp_path / "other", show=False).metrics


def test_weighted_asks_for_sizes_and_says_where_there_are_none() -> None:
    some = Population(20, lambda client: Examples(np.zeros((3, 64), np.float32), np.zeros(3, np.int64)))
    job = Federated(mlp, some, clients=20, select="weighted")
    with pytest.raises(UserError, match=r"^select=weighted: this data does not tell its clients' numbers of examples"):
        job.check_parts()
