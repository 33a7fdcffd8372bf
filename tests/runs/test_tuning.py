"""`shoal tune`: which runs it makes, what it advises, and one that is real."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.commands.cli import main
from shoal.jobs.catalog import find
from shoal.jobs.reinforcement import Reinforcement
from shoal.protocol.errors import UserError
from shoal.runs.tuning import ENVS, LARGEST, Tuned, enough, small, tried, tune

JOB: Mapping[str, Any] = {"num_envs": 32, "rollout_length": 32}


def runs(rate: Any, actors: int | None = None, many: int = 2) -> list[tuple[dict[str, Any], int, float]]:
    return list(tried(JOB, actors, many, lambda settings, count: rate(settings["num_envs"], settings["rollout_length"], count)))


def test_one_setting_changes_at_a_time_and_a_fall_ends_a_direction() -> None:
    made = runs(lambda envs, length, actors: -abs(envs - 128) - abs(length - 16) - abs(actors - 1))
    asked = [(row["num_envs"], row["rollout_length"], actors) for row, actors, _ in made]
    assert asked == [
        (32, 32, 2),
        (64, 32, 2),
        (128, 32, 2),
        (256, 32, 2),
        (16, 32, 2),
        (128, 64, 2),
        (128, 16, 2),
        (128, 16, 1),
    ]


def test_given_actors_are_kept_and_many_cores_are_tried() -> None:
    assert {actors for _, actors, _ in runs(lambda *_: 1.0, actors=3)} == {3}
    assert [actors for _, actors, _ in runs(lambda *_: 1.0, many=16)][-2:] == [1, 16]


def test_ever_more_environments_are_tried_as_long_as_they_pay() -> None:
    assert [row["num_envs"] for row, _, _ in runs(lambda envs, *_: envs)][: len(ENVS) - 1] == [32, 64, 128, 256, 512]


def test_settings_that_do_not_fit_end_a_direction_unmeasured() -> None:
    def rate(settings: Mapping[str, Any], count: int) -> float:
        return float(settings["num_envs"] * settings["rollout_length"])

    made = [row for row, _, _ in tried(JOB, 2, 2, rate, lambda row: row["num_envs"] * row["rollout_length"] <= 4_096)]
    assert [(row["num_envs"], row["rollout_length"]) for row in made] == [(32, 32), (64, 32), (128, 32), (16, 32), (128, 16)]


def test_settings_that_the_job_refuses_are_left_out_with_the_reason() -> None:
    def rate(settings: Mapping[str, Any], count: int) -> float:
        if settings["num_envs"] * settings["rollout_length"] > 2_048:
            raise UserError("buffer_size=2048: must hold one trajectory")
        return float(settings["num_envs"] * settings["rollout_length"])

    left: list[tuple[dict[str, Any], int, str]] = []
    made = list(tried(JOB, 2, 2, rate, left_out=lambda settings, actors, why: left.append((dict(settings), actors, why))))
    assert [(row["num_envs"], row["rollout_length"]) for row, _, _ in made] == [(32, 32), (64, 32), (16, 32), (64, 16)]
    why = "buffer_size=2048: must hold one trajectory"
    assert left == [
        ({"num_envs": 128, "rollout_length": 32}, 2, why),
        ({"num_envs": 64, "rollout_length": 64}, 2, why),
    ]


def test_a_mistake_in_the_job_as_it_stands_ends_the_command() -> None:
    def rate(settings: Mapping[str, Any], count: int) -> float:
        raise UserError("num_minibatches=9: too many")

    with pytest.raises(UserError, match="num_minibatches=9: too many"):
        list(tried(JOB, 2, 2, rate))


@pytest.mark.parametrize(
    ("settings", "without", "reason"),
    [
        ({}, {"inference": "central"}, "inference=central: it needs shared memory without a name (Linux)"),
        ({"method": "dqn", "buffer_size": 700}, {"num_envs": 64}, "buffer_size=700: must hold one trajectory"),
        (
            {"method": "r2d2", "memory": "lstm", "rollout_length": 40, "burn_in": 20, "num_envs": 8},
            {"rollout_length": 16},
            "burn_in=20: must be at most rollout_length - 1 = 15",
        ),
        (
            {"num_minibatches": 30, "num_envs": 32, "batch": 1},
            {"num_envs": 16},
            "num_minibatches=30: a step learns from 1 x num_envs=16",
        ),
    ],
    ids=["a place", "the replay", "the burn-in", "minibatches"],
)
def test_a_job_that_refuses_some_candidates_is_tuned_by_the_others(
    settings: dict[str, Any], without: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(job: Any, **how: Any) -> Any:  # a run looks at its job's parts before it has a folder
        job.check_parts()

    monkeypatch.setattr("shoal.jobs.problems.conflicts.sys", SimpleNamespace(platform="darwin"))  # has no central inference
    monkeypatch.setattr("shoal.runs.running.run", started)
    monkeypatch.setattr("shoal.runs.tuning.rate_of", lambda run, seconds: 1.0)
    lines: list[str] = []
    found = tune(find("cartpole").configured({"preset": "none"} | settings), "cartpole", 2, 1.0, lines.append)
    assert not [row for row, _, _ in found.rows if without.items() <= row.items()]
    (line,) = [line for line in lines if reason in line][:1]
    assert ": left out: " in line
    assert all(f"{name}={value}" in line for name, value in without.items())
    assert len([row for row, _, _ in found.rows if row.get("inference") == "actor"]) > 3


def test_a_trajectory_of_pictures_that_would_fill_memory_does_not_fit() -> None:
    pytest.importorskip("ale_py", reason="pip install 'shoal[atari]'")
    job, bytes_of_pixels = Reinforcement("ALE/Pong-v5", frame_stack=1), 4 * 84 * 84
    for envs in (128, 256, 512):
        assert small(job, {"num_envs": envs, "rollout_length": 20}) == (21 * envs * bytes_of_pixels < LARGEST)
    assert small(Reinforcement("ALE/Pong-v5"), {"num_envs": 256, "rollout_length": 20})  # each frame once
    assert small(find("cartpole"), {"num_envs": 512, "rollout_length": 128})


def test_a_run_of_a_large_network_goes_on_until_it_has_made_some_versions() -> None:
    def lasts(*rows: tuple[float, int]) -> list[bool]:
        ends = enough(3.0)
        return [ends({"seconds": seconds, "version": version}) for seconds, version in rows]

    assert lasts((0.1, 1), (2.9, 900), (3.1, 950)) == [False, False, True]
    assert lasts((9.0, 1), (10.0, 2), (11.0, 3), (12.0, 4)) == [False, False, False, True]
    assert lasts((9.0, 1), (23.9, 2), (24.1, 3)) == [False, False, True]


def told(*rates: float) -> Tuned:
    found = Tuned("cartpole")
    for at, rate in enumerate(rates):
        found.add({"num_envs": 32 << at, "rollout_length": 32}, 2, rate)
    return found


def test_the_best_row_is_advised_with_its_gain_and_command() -> None:
    found = told(100.0, 130.0, 250.0, 240.0)
    assert found.gain == 2.5
    assert found.command == "shoal simulate cartpole num_envs=128 rollout_length=32 --actors 2"
    assert "2.50 times the steps a second of the job as it stands" in str(found)
    assert str(found).count("<- best") == 1
    assert json.loads(json.dumps(found.plain()))["best"] == {
        "num_envs": 128,
        "rollout_length": 32,
        "actors": 2,
        "steps_per_second": 250.0,
    }


def test_the_command_repeats_what_was_typed() -> None:
    given = ("method=sac", "num_envs=4", 'env_kwargs={"g": 5}', "--seed", "4")
    found = Tuned("gymnasium:Pendulum-v1", given)
    found.add({"num_envs": 4, "double_buffer": True}, 1, 10.0)
    typed = "shoal simulate gymnasium:Pendulum-v1 method=sac 'env_kwargs={\"g\": 5}' --seed 4"
    assert found.command == f"{typed} num_envs=4 double_buffer=true --actors 1"


def test_what_may_be_chance_is_no_gain() -> None:
    found = told(100.0, 104.0)
    assert (found.gain, found.best[0]["num_envs"]) == (1.0, 32)
    assert "the job stands best as it is" in str(found)


def test_a_job_without_one_of_the_settings_is_not_tuned() -> None:
    for name, missing in {
        "digits": "num_envs and no rollout_length and no total_timesteps",
        "fed-cartpole": "total_timesteps",
        "cartpole-es": "num_envs and no rollout_length",
    }.items():
        with pytest.raises(UserError, match=f"tune: {name} has no {missing}: only jobs with num_envs, "):
            tune(find(name), name, None, 1.0, lambda line: None)


def test_a_tuned_job_has_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shoal.runs.tuning.ENVS", (16, 32))
    monkeypatch.setattr("shoal.runs.tuning.LENGTHS", (32,))
    words = ["tune", "cartpole", "lr=0.003", "num_envs=32", "rollout_length=32"]
    assert main([*words, "--actors", "1", "--seconds", "0.4", "--seed", "4", "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["num_envs"] for row in said["rows"]][:2] == [32, 16]
    places = [(row["inference"], row["double_buffer"]) for row in said["rows"]]
    assert places == [("actor", False)] * 2 + [("central", False), ("central", True), ("actor", True)]
    assert all(row["steps_per_second"] > 100 for row in said["rows"])
    assert said["command"].startswith("shoal simulate cartpole lr=0.003 --seed 4 num_envs=")
    assert not list(tmp_path.iterdir())  # no run is left
