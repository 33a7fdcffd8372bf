"""What a user's code draws from global generators is the same each time, and other held-out data is noticed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import shoal
from shoal import Federated
from shoal.protocol.errors import UserError

FEW: dict[str, Any] = {"clients": 4, "cohort": 4, "rounds": 2, "local_epochs": 1}


class Augmented(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.tensor(np.random.normal(size=3), dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x * self.scale + float(np.random.normal()) * random.random())


def data() -> Any:
    x = np.random.normal(size=(80, 3)) + torch.rand(80, 3).numpy()
    order = [random.random() for _ in range(80)]
    return (x, (x[:, 0] > 0.5).astype(int)) if order else None


def states() -> list[Any]:
    return [random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()]


@pytest.mark.parametrize("actors", [0, 2])
def test_unseeded_data_models_and_augmentation_repeat(tmp_path: Path, actors: int) -> None:
    runs, found = [], []
    for name in ("a", "b"):
        before = states()
        runs.append(shoal.run(Federated(Augmented, data, **FEW), actors=actors, folder=tmp_path / name))
        assert states() == before
        found.append(shoal.evaluate(runs[-1]))
        random.random(), np.random.rand(), torch.rand(())
    assert runs[0].summary["weights_sha256"] == runs[1].summary["weights_sha256"]
    assert found[0] == found[1]
    assert found[0]["held_out_loss"] == pytest.approx(runs[0].metrics["held_out_loss"])
    again = shoal.evaluate(shoal.load(tmp_path / "a", Federated(Augmented, data, **FEW)))
    assert again == found[0]


def test_other_held_out_data_is_refused(tmp_path: Path) -> None:
    def other() -> Any:
        x, y = data()
        return x + 1, y

    run = shoal.run(Federated(Augmented, data, **FEW), actors=0, folder=tmp_path / "run")
    assert len((tmp_path / "run" / "held_out.sha256").read_text().strip()) == 64
    changed = shoal.load(run.folder, Federated(Augmented, other, **FEW))
    with pytest.raises(UserError, match="the held-out data is not that of the run"):
        shoal.evaluate(changed)
    with pytest.raises(UserError, match="the held-out data is not that of the run"):
        changed.resume(settings={"rounds": 3})
