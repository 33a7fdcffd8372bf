"""Whole runs of models with frozen parameters: frozen parameters do not travel up, and change nothing of what is learned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from whole import run

import shoal
from shoal import Federated, Reinforcement
from shoal.aggregators.around.moving import Moving
from shoal.envs import datasets
from shoal.jobs import job as jobs
from shoal.jobs.job import Job


class Probe(nn.Module):
    """A frozen body of 64 x 200 numbers, batch norm that goes on counting, and a trained head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(64, 200), nn.BatchNorm1d(200), nn.Linear(200, 10)
        self.body.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.body(x)).relu())


SMALL = {"rounds": 2, "clients": 6, "cohort": 4, "local_epochs": 1, "eval_every": 0}
WAYS = [
    {},
    {"partial_sums": False},
    {"deterministic": False},
    {"compress": "int8"},
    {"compress": "topk", "compress_feedback": True, "deterministic": False},
    {"compress_weights": "float16"},
    {"aggregator": "fedbuff", "buffer": 2, "rounds": 4},
]


def probe(**settings: Any) -> Job:
    small = {name: SMALL[name] for name in SMALL if name != "cohort" or "buffer" not in settings}
    return Federated(Probe, datasets.digits(), **{**small, **settings})


def metric(outcome: Any, name: str) -> float:
    return sum(metrics[name] for _, metrics in outcome.seen.steps if name in metrics)


@pytest.mark.parametrize("settings", WAYS, ids=str)
def test_frozen_parameters_do_not_travel_up(tmp_path, monkeypatch, settings):
    job = probe(**settings)
    outcome = run(job, 2, f"ipc://{tmp_path}/hub")
    start = job.problem.first(job.seed)[0]
    assert outcome.finish.reason == "done"
    for name in ("body.weight", "body.bias"):
        assert (outcome.weights[name] == start[name]).all()
    for name in ("head.weight", "norm.running_mean", "norm.num_batches_tracked"):
        assert (outcome.weights[name] != start[name]).any()
    assert start.layout.by_name.keys() - start.layout.moving.by_name.keys() == {"body.weight", "body.bias"}
    monkeypatch.setattr(Job, "thin", property(lambda self: False))
    before = run(probe(**settings), 2, f"ipc://{tmp_path}/whole")
    assert metric(outcome, "up_bytes") < 0.5 * metric(before, "up_bytes")
    if settings in ({}, {"partial_sums": False}):  # rounded and sparse deltas share blocks and ranks with frozen zeros
        assert outcome.sha256 == before.sha256 == run(job, 0).sha256


def test_users_own_parts_are_given_whole_deltas(tmp_path):
    seen = []

    def looking(inner):
        fold = inner.fold
        inner.fold = lambda contribution: (seen.append(contribution.bundle.layout), fold(contribution))[1]
        return inner

    job = replace(probe(partial_sums=False), around=(looking,))
    assert run(job, 0).finish.reason == "done"
    assert {layout.digest for layout in seen} == {job.problem.first(0)[0].layout.digest}


@pytest.mark.parametrize(
    "settings", [{}, {"server_momentum": 0.9, "aggregator": "fedavgm"}, {"rounds": 4, "eval_every": 1}], ids=str
)
@pytest.mark.parametrize("how", ["ipc", "tcp", "shared", "gateway"])
def test_frozen_parameters_go_down_once(tmp_path, monkeypatch, settings, how):
    job = probe(**{"rounds": 4, **settings})
    address = "tcp://127.0.0.1:*" if how == "tcp" else f"ipc://{tmp_path}/hub"
    outcome = run(job, 2, address, share=how == "shared", gateway=how == "gateway")
    assert isinstance(job.aggregator("cpu"), Moving)
    monkeypatch.setattr(jobs, "WORTH", 0.0)
    before = run(job, 2, f"ipc://{tmp_path}/whole")
    assert outcome.sha256 == before.sha256 == run(job, 0).sha256
    if how != "shared":  # which does not count
        assert metric(outcome, "down_bytes") < 0.5 * metric(before, "down_bytes")  # 2 of 5 versions for two actors are whole


class Thawing(Probe):
    """Changes a frozen parameter itself, in training."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            with torch.no_grad():
                self.body.bias += 0.01
        return super().forward(x)


def test_a_frozen_parameter_that_a_client_changes_reaches_all_actors(tmp_path):
    job = Federated(Thawing, datasets.digits(), **{**SMALL, "rounds": 3})
    outcome = run(job, 2, f"ipc://{tmp_path}/hub")
    assert (outcome.weights["body.bias"] != job.problem.first(job.seed)[0]["body.bias"]).all()
    assert outcome.sha256 == run(job, 0).sha256


def test_a_policy_with_a_frozen_body_learns_the_same_and_sends_less(tmp_path, monkeypatch):
    class Frozen(nn.Module):
        def __init__(self, spaces: Any) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 500), nn.Linear(500, 3)
            self.body.requires_grad_(False)

        def forward(self, seen: torch.Tensor) -> Any:
            out = self.head(self.body(seen).tanh())
            return out[:, :2], out[:, 2]

    job = Reinforcement("CartPole-v1", Frozen, method="ppo", total_timesteps=256, num_envs=2, rollout_length=8, clients=2)
    outcome = run(job, 2, f"ipc://{tmp_path}/hub")
    monkeypatch.setattr(jobs, "WORTH", 0.0)
    before = run(job, 2, f"ipc://{tmp_path}/whole")
    assert outcome.sha256 == before.sha256 == run(job, 0).sha256
    assert metric(outcome, "down_bytes") < 0.6 * metric(before, "down_bytes")


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_resumed_run_sends_whole_weights_once_and_has_the_same_bits(tmp_path, transport):
    plain = shoal.run(probe(rounds=4), actors=0, folder=tmp_path / "plain")
    first = shoal.run(probe(rounds=2), actors=2, transport=transport, folder=tmp_path / "run")
    assert first.resume(settings={"rounds": 4}).summary["weights_sha256"] == plain.summary["weights_sha256"]
