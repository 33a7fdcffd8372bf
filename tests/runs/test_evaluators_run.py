"""Runs with evaluators: actors that evaluate the weights while others train, and never contribute to them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.protocol.errors import UserError
from shoal.runs.rundir import Config

SMALL: dict[str, Any] = {"num_envs": 4, "rollout_length": 32, "eval_episodes": 3, "preset": "none"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def log(run: shoal.Run) -> str:
    return (run.folder / "log.txt").read_text()


def test_a_run_in_rounds_has_the_weights_and_the_evaluations_that_it_has_without_an_evaluator() -> None:
    job = shoal.Reinforcement("CartPole-v1", method="ppo", **SMALL, clients=2, total_timesteps=6 * 256, eval_every=2)
    plain = shoal.run(job, actors=1, show=False)
    beside = shoal.run(job, actors=1, evaluators=1, show=False)
    assert "joined as an evaluator" in log(beside)
    assert beside.summary["weights_sha256"] == plain.summary["weights_sha256"]
    found = [
        [(row["version"], row["metrics"].get("eval/return_mean"), row["metrics"].get("return_mean")) for row in one.history]
        for one in (plain, beside)
    ]
    assert found[0] == found[1]
    assert sum(value is not None for _, value, _ in found[0]) > 2
    assert Config.load(beside.folder / "config.toml").evaluators == 1  # and a resume has it too
    assert "evaluators" not in (plain.folder / "config.toml").read_text()


@pytest.mark.parametrize("count", [1, 2])
def test_a_stream_is_evaluated_by_actors_that_join_for_that_alone(tmp_path: Path, count: int) -> None:
    shoal_ = [sys.executable, "-m", "shoal"]
    settings = [f"{name}={value}" for name, value in {**SMALL, "eval_every": 5, "total_timesteps": 40_000}.items()]
    hub = f"ipc://{tmp_path}/hub"
    words = ["coordinator", "gymnasium:CartPole-v1", "method=impala", *settings, "--actors", "1", "--bind", hub]
    with subprocess.Popen([*shoal_, *words, "--run-dir", "run", "--quiet"], stdout=subprocess.PIPE) as begun:
        joins = [*shoal_, "actor", hub, "--evaluate", "--count", str(count)]
        done = subprocess.run(joins, capture_output=True, text=True, check=False, timeout=120)
        assert begun.wait(120) == 0
    assert "as an evaluator" in done.stdout
    assert done.returncode == 0
    assert "joined as an evaluator" in (tmp_path / "run" / "log.txt").read_text()
    assert any("eval/return_mean" in row["metrics"] for row in shoal.load("run").history[:-1])


def test_clients_of_a_federated_job_are_evaluated_by_evaluators() -> None:
    settings = {"rounds": 3, "eval_every": 1, "eval_cohort": 4, "local_epochs": 1}
    plain = shoal.run("digits", settings=settings, actors=1, show=False)
    beside = shoal.run("digits", settings=settings, actors=1, evaluators=2, show=False)
    assert beside.summary["weights_sha256"] == plain.summary["weights_sha256"]
    assert [row["metrics"].get("eval/accuracy") for row in beside.history] == [
        row["metrics"].get("eval/accuracy") for row in plain.history
    ]


@pytest.mark.parametrize(
    ("job", "settings", "actors", "line"),
    [
        ("cartpole", {}, 1, "evaluators=1: this run gives actors no evaluations; eval_every=50, say, or evaluators=0"),
        (
            "digits",
            {},
            1,
            "evaluators=1: this run gives actors no evaluations; eval_every=10 and eval_cohort=5, say, or evaluators=0",
        ),
        (
            "cartpole",
            {"eval_every": 5},
            0,
            "the plain loop evaluates in this process; actors=1, or --evaluators 0 (evaluators=0)",
        ),
    ],
)
def test_evaluators_without_work_are_refused_before_a_run_has_a_folder(
    tmp_path: Path, job: str, settings: dict[str, Any], actors: int, line: str
) -> None:
    with pytest.raises(UserError) as wrong:
        shoal.run(job, settings=settings, actors=actors, evaluators=1, show=False)
    assert line in str(wrong.value)
    assert list(tmp_path.glob("runs/*")) == []


@pytest.mark.parametrize(("name", "value"), [("evaluators", -1), ("evaluators", "1"), ("actors", -2)])
def test_a_resume_refuses_a_number_of_processes_that_is_none(name: str, value: Any) -> None:
    run = shoal.run("digits", settings={"rounds": 1}, actors=0, show=False)
    with pytest.raises(UserError, match=f"{name} = {value!r}; it must be a whole number from 0"):
        run.resume(settings={"rounds": 2}, **{name: value})
