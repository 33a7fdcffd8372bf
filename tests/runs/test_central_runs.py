"""Whole runs with central inference: the numbers of inference in the actor, also where the inference process dies."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.actors.inferring import Inferring
from shoal.coordinator.sharing import Sharing
from shoal.protocol.layout import Bytes
from shoal.runs import launch

SMALL = {"method": "ppo", "num_envs": 4, "rollout_length": 16, "clients": 3, "total_timesteps": 192 * 5, "eval_episodes": 0}
LARGE = {"num_envs": 64, "rollout_length": 32, "clients": 2, "total_timesteps": 4_096 * 3, "hidden": (128, 128)}
"""Sizes with which weights and trajectories have more than 64 KiB: less goes by the socket, whatever the transport."""
METHODS: Mapping[str, Mapping[str, Any]] = {
    "ppo": {"method": "ppo"},
    "dqn": {"method": "dqn", "learning_starts": 4_096, "replay_ratio": 0.01, "batch_size": 64, "replay": "prioritized"},
}


def played(folder: Path, actors: int = 2, transport: str | None = None, **settings: Any) -> shoal.Run:
    job = shoal.Reinforcement("CartPole-v1", **{**SMALL, **settings})
    return shoal.run(job, actors=actors, transport=transport, folder=folder, show=False)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often weights, and trajectories, lay in shared memory."""
    counts, lend, contribution = Counter[str](), Sharing.lend, Sharing.contribution

    def lends(self: Sharing, session: bytes, version: int) -> tuple[int, ...]:
        place = lend(self, session, version)
        counts["weights"] += bool(place)
        return place

    def reads(self: Sharing, slot: tuple[int, ...]) -> Bytes:
        counts["trajectories"] += 1
        return contribution(self, slot)

    monkeypatch.setattr(Sharing, "lend", lends)
    monkeypatch.setattr(Sharing, "contribution", reads)
    return counts


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The weights of the plain loop, by method."""
    folder = tmp_path_factory.mktemp("plain")
    return {
        name: str(played(folder / name, 0, **{**LARGE, **method}).summary["weights_sha256"]) for name, method in METHODS.items()
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Mapping[bool, str]:
    """The weights of the plain loop, of whole rollouts and of rollouts in halves."""
    folder = tmp_path_factory.mktemp("alone")
    return {
        halves: str(played(folder / str(halves), 0, double_buffer=halves).summary["weights_sha256"]) for halves in (False, True)
    }


EXECUTORS = [("ipc", "actor"), ("shm", "actor"), ("ipc", "central"), ("shm", "central")]


@pytest.mark.parametrize(("transport", "inference"), EXECUTORS)
@pytest.mark.parametrize("method", METHODS)
def test_four_executors_make_the_same_batches_bit_for_bit(
    tmp_path: Path, plain: Mapping[str, str], shared: Counter[str], transport: str, inference: str, method: str
) -> None:
    run = played(tmp_path / "run", 2, transport, inference=inference, **{**LARGE, **METHODS[method]})
    assert run.summary["weights_sha256"] == plain[method]
    assert [shared[each] > 0 for each in ("weights", "trajectories")] == [transport == "shm"] * 2
    shares = [row["metrics"].get("inference_central") for row in run.history]
    assert shares == [1.0 if inference == "central" else None] * 3


@pytest.mark.parametrize("inference", ["actor", "central"])
def test_halves_of_small_trajectories_make_the_batches_of_the_plain_loop_too(
    tmp_path: Path, alone: Mapping[bool, str], inference: str
) -> None:
    run = played(tmp_path / "run", 2, "ipc", double_buffer=True, inference=inference)
    assert run.summary["weights_sha256"] == alone[True]


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


def test_an_inference_process_on_a_device_answers_for_a_whole_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "infers_on", lambda job, device: "cpu:0")  # the way of a GPU, on the processor
    monkeypatch.setattr(launch, "told_on", lambda job, device: f"told of {job.problem.inference}")
    settings = {"inference": "central", "method": "impala", "total_timesteps": 960, "num_envs": 4, "rollout_length": 16}
    job = shoal.Reinforcement("CartPole-v1", eval_episodes=0, **settings)
    run = shoal.run(job, actors=2, folder=tmp_path / "run", show=False)
    assert run.history[-1]["metrics"]["inference_central"] == 1.0
    assert "told of central" in run.dir.log_file.read_text()
    assert "shoal:" not in capfd.readouterr().err
