"""First weights from a file: whose it is does not matter, whether it fits does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from shoal.coordinator.keeping.store import Snapshot, Store
from shoal.nets.flat import FlatModule
from shoal.nets.saved import read_weights
from shoal.protocol.errors import UserError
from shoal.runs.export import export


class Net(nn.Module):
    """With running statistics, a buffer that no state_dict holds, and two names of one parameter."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.norm = nn.BatchNorm1d(3)
        self.into = nn.Linear(3, 3, bias=False)
        self.out = nn.Linear(3, 3, bias=False)
        self.out.weight = self.into.weight
        self.register_buffer("scratch", torch.rand(2), persistent=False)


def digest(module: nn.Module) -> str:
    return FlatModule(module).bundle().sha256()


def test_an_exported_file_and_a_snapshot_give_the_weights_that_were_saved(tmp_path: Path) -> None:
    weights = FlatModule(Net(1)).bundle()
    exported = export(weights, tmp_path / "exported.safetensors", lambda: (Net(1), ()))
    kept = Store(tmp_path).save(Snapshot(3, weights, {"m": weights.vector().copy()}))
    for path in (exported, kept):
        module = Net(2)
        read_weights(module, path)
        assert digest(module) == weights.sha256()


def test_a_state_dict_of_another_program_will_do(tmp_path: Path) -> None:
    other = Net(1).state_dict()
    del other["out.weight"]  # tied: such files have it once
    save_file(other, tmp_path / "theirs.safetensors")
    module = Net(2)
    scratch = module.scratch.clone()
    read_weights(module, str(tmp_path / "theirs.safetensors"))
    assert torch.equal(module.out.weight, other["into.weight"])
    assert torch.equal(module.scratch, scratch)


def test_the_weights_of_a_flat_module_are_read_where_they_lie(tmp_path: Path) -> None:
    weights = FlatModule(Net(1)).bundle()
    flat = FlatModule(Net(2))
    read_weights(flat.module, export(weights, tmp_path / "exported.safetensors", lambda: (Net(1), ())))
    assert flat.bundle().sha256() == weights.sha256()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"norm.bias": None}, "array 'norm.bias' is missing; the model has float32[3] there"),
        ({"head": torch.ones(2)}, "array 'head' float32[2] is none of the model's 7: norm.weight, norm.bias, "),
        ({"norm.bias": torch.ones(4)}, "array 'norm.bias' is float32[4]; the model has float32[3]"),
        ({"into.weight": torch.ones(3, 3).half()}, "array 'into.weight' is float16[3, 3]; the model has float32[3, 3]"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_copied(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    arrays = {**Net(1).state_dict(), **change}
    del arrays["out.weight"]
    path = tmp_path / "theirs.safetensors"
    save_file({name: array for name, array in arrays.items() if array is not None}, path)
    module = Net(2)
    before = digest(module)
    with pytest.raises(UserError) as refused:
        read_weights(module, path)
    assert str(refused.value).startswith(f"{path}: {says}")
    assert digest(module) == before


def test_what_is_no_such_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\x00")
    torch_file = tmp_path / "model.pt"
    torch_file.write_bytes(b"PK\x03\x04" * 100)
    for path in (tmp_path / "missing.safetensors", tmp_path / "torn.safetensors", torch_file, tmp_path):
        with pytest.raises(UserError) as refused:
            read_weights(Net(2), path)
        assert str(refused.value).startswith(f"{path}: cannot be read as a .safetensors file (")
        assert "\n" not in str(refused.value)
