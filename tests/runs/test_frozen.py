"""Whole runs of models with frozen parameters: frozen parameters do not travel up, and change nothing of what is learned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from whole import run

from shoal import Federated
from shoal.envs import datasets
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
