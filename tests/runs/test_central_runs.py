"""Whole runs with central inference: the numbers of inference in the actor, also where the inference process dies."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.actors.inferring import Inferring

SMALL = {"method": "ppo", "num_envs": 4, "rollout_length": 16, "clients": 3, "total_timesteps": 192 * 5, "eval_episodes": 0}


def played(folder: Path, actors: int = 2, transport: str | None = None, **settings: Any) -> shoal.Run:
    job = shoal.Reinforcement("CartPole-v1", **{**SMALL, **settings})
    return shoal.run(job, actors=actors, transport=transport, folder=folder, show=False)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Mapping[bool, str]:
    """The weights of the plain loop, of whole rollouts and of rollouts in halves."""
    folder = tmp_path_factory.mktemp("alone")
    return {
        halves: str(played(folder / str(halves), 0, double_buffer=halves).summary["weights_sha256"]) for halves in (False, True)
    }


@pytest.mark.parametrize(
    ("transport", "settings"),
    [("ipc", {}), ("shm", {}), ("ipc", {"inference": "central"}), ("shm", {"inference": "central"})],
)
@pytest.mark.parametrize("halves", [False, True])
def test_four_executors_make_the_same_batches_bit_for_bit(
    tmp_path: Path, alone: Mapping[bool, str], transport: str, settings: Any, halves: bool
) -> None:
    run = played(tmp_path / "run", 2, transport, double_buffer=halves, **settings)
    assert run.summary["weights_sha256"] == alone[halves]
    shares = [row["metrics"].get("inference_central") for row in run.history]
    assert shares == [1.0 if settings else None] * 5


def test_a_stream_whose_batches_are_shared_comes_to_its_end(tmp_path: Path) -> None:
    job = shoal.Reinforcement("CartPole-v1", num_envs=4, rollout_length=16, total_timesteps=960, eval_episodes=0)
    settings = {"inference": "central", "inference_min_batch": 8}
    run = shoal.run(job, settings=settings, actors=2, folder=tmp_path / "run", show=False)
    assert run.history[-1]["metrics"]["inference_central"] == 1.0
    assert run.summary["steps"] <= 192 * 5


def test_an_inference_process_that_dies_is_replaced_and_changes_no_bit(
    tmp_path: Path, alone: Mapping[bool, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Inferring._answer

    def dies(self: Inferring, batch: Any) -> None:
        if self.batches == 20 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os._exit(7)
        plain(self, batch)

    monkeypatch.setattr(Inferring, "_answer", dies)
    run = played(tmp_path / "run", inference="central")
    assert run.summary["weights_sha256"] == alone[False]
    assert min(row["metrics"]["inference_central"] for row in run.history) < 1.0
    logged = run.dir.log_file.read_text()
    assert "the inference process ended, 7; another takes its place" in logged
