"""Data as people have it, in whole runs: its form changes no bit, nor does the number of actors."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset
from whole import run

from shoal import Federated
from shoal.jobs.catalog import find
from shoal.nets.models import mlp

RNG = np.random.Generator(np.random.Philox(7))
X, Y = RNG.normal(size=(120, 8)).astype(np.float32), RNG.integers(0, 3, 120)
PARTS = np.array_split(np.arange(120), 6)


def job(data: Any, **more: Any) -> Any:
    settings = {"clients": 6, "cohort": 3, "rounds": 3, "local_epochs": 1, "partition": "iid", "eval_every": 1}
    return Federated(partial(mlp, (8, 8, 3)), data, **{**settings, **more})


def test_the_form_of_the_data_changes_no_bit() -> None:
    expected = run(job((X, Y)), 0).sha256
    assert run(job(TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))), 0).sha256 == expected
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({f"x{i}": X[:, i] for i in range(8)} | {"label": Y})
    assert run(job(lambda: (frame, "label")), 0).sha256 == expected


@pytest.mark.parametrize("transport", ["tcp", "memory"])
def test_a_list_of_data_sets_is_one_a_client_for_any_number_of_actors(transport: str) -> None:
    clients = [TensorDataset(torch.from_numpy(X[part]), torch.from_numpy(Y[part])) for part in PARTS]
    in_order = job((X, Y), partition=lambda labels, clients, seed: [part[part < len(labels)] for part in PARTS[:4]], clients=4)
    listed = job((clients, (X[:20], Y[:20])))
    plain, shared = run(listed, 0), run(listed, 2, share=transport == "memory")
    assert plain.sha256 == shared.sha256 != run(in_order, 0).sha256
    assert {"accuracy", "held_out_loss"} <= {name for _, metrics in plain.seen.steps for name in metrics}


def test_weights_of_examples_and_all_a_client_may_do_are_the_same_bits_for_any_number_of_actors() -> None:
    more = {
        "optimizer": "adamw",
        "lr": 0.01,
        "clip_grad_norm": 1.0,
        "lr_schedule": "cosine",
        "local_steps": 7,
        "drop_last": True,
    }
    weighted = job((X, Y, np.linspace(0, 2, 120)), mu=0.1, **more)
    assert run(weighted, 0).sha256 == run(weighted, 3).sha256 != run(job((X, Y), mu=0.1, **more), 0).sha256


def test_a_setting_that_is_a_path_may_be_given_as_one(tmp_path: Path) -> None:
    assert find("mnist").configured({"data": tmp_path}).plain()["data"] == str(tmp_path)
