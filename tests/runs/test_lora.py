"""LoRA: the adapted layer is the formula, only adapters travel, and batch norm is what the model's maker chose."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from whole import run

from shoal import Federated
from shoal.envs import datasets
from shoal.jobs.catalog import find
from shoal.nets import norms
from shoal.nets.flat import FlatModule
from shoal.nets.lora import Logits, LoRA, adapted
from shoal.nets.transformer import Transformer
from shoal.protocol.errors import UserError


def test_an_adapted_layer_is_the_papers_formula_and_starts_as_the_layer():
    linear, x = nn.Linear(5, 3), torch.randn(7, 5)
    its = LoRA(linear, rank=2, alpha=6.0)
    assert torch.equal(its(x), linear(x))
    with torch.no_grad():
        its.b.copy_(torch.randn(3, 2))
    torch.testing.assert_close(its(x), x @ (linear.weight + 3.0 * its.b @ its.a).T + linear.bias)


def test_only_adapters_and_what_was_named_are_trained():
    module = adapted(Transformer(17, 64, 10), rank=4, targets=("query", "value"), trained=("head",))
    names = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    its = {f"blocks.{at}.{part}.{of}" for at in (0, 1) for part in ("query", "value") for of in ("a", "b")}
    assert names == {*its, "head.weight", "head.bias"}
    everywhere = adapted(Transformer(17, 64, 10), trained=("head",))
    assert sum(isinstance(part, LoRA) for part in everywhere.modules()) == 12


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"targets": ("qkv",)}, "targets=qkv: no linear layer has such a name; there are blocks.0.query"),
        ({"trained": ("classifier",)}, "trained=classifier: the model has no part of that name"),
        ({"rank": 0}, "rank=0"),
    ],
)
def test_names_that_are_not_there_are_refused(how: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said):
        adapted(Transformer(17, 64, 10), **how)


def test_adapters_alone_travel_up_and_the_frozen_rest_stays_as_it_was():
    job = find("lora").configured({"rounds": 2, "clients": 10, "cohort": 4, "local_epochs": 1, "eval_every": 0})
    before = job.problem.first(0)[0]
    outcome = run(job, 2)
    layout = before.layout
    assert layout.moving.nbytes < layout.nbytes / 3
    frozen = [name for name in layout.by_name if name in layout.still]
    assert all(np.array_equal(before[name], outcome.weights[name]) for name in frozen)
    assert not np.array_equal(before["head.weight"], outcome.weights["head.weight"])
    uploads = [metrics["up_bytes"] for _, metrics in outcome.seen.steps if "up_bytes" in metrics]
    assert all(sent < 4 * 3 * layout.moving.nbytes for sent in uploads)


class Hugging(nn.Module):
    """A model that is asked as Hugging Face's sequence classifiers are."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.query, self.classifier = nn.Embedding(30, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        seen = self.query(self.body(input_ids)) * attention_mask[..., None]
        return SimpleNamespace(logits=self.classifier(seen.sum(1) / attention_mask.sum(1, keepdim=True)))


def test_a_model_that_is_asked_as_hugging_faces_are_trains_as_it_is():
    def model() -> nn.Module:
        return Logits(adapted(Hugging(), rank=2, targets=("query",), trained=("classifier",)), pad=0)

    rng = np.random.default_rng(0)
    x = rng.integers(1, 30, (60, 6))
    x[:, 4:] = 0
    padded = model()
    assert torch.allclose(padded(torch.from_numpy(x)), padded(torch.from_numpy(x[:, :4])))
    job = Federated(model, (x, (x[:, 0] > 14).astype(int)), clients=4, cohort=4, rounds=2, partition="iid")
    assert run(job, 0).finish.reason == "done"


def test_grouped_has_no_running_statistics_and_frozen_has_none_that_change():
    def model() -> nn.Module:
        return nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(216, 10)
        )

    made = norms.grouped(model(), groups=4)
    assert isinstance(made[2], nn.GroupNorm)
    assert made[2].num_groups == 3
    assert not list(made.buffers())
    assert isinstance(norms.grouped(nn.BatchNorm1d(7)), nn.GroupNorm)
    job = Federated(lambda: norms.frozen(model()), datasets.digits, clients=4, cohort=2, rounds=1, local_epochs=1)
    before, after = job.problem.first(0)[0], run(job, 0).weights
    assert np.array_equal(before["2.running_mean"], after["2.running_mean"])
    assert np.array_equal(before["2.weight"], after["2.weight"])
    assert FlatModule(job.module()).trainable == 60 + 2170
