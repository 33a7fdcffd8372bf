"""A trained model for use elsewhere."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import shoal
from shoal.nets.flat import FlatModule
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle, Layout
from shoal.runs.export import export, load


class Net(nn.Module):
    """Parameters, a buffer, an integer without dimensions, and a dropout that must be off in what is exported."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.hidden = nn.Linear(3, width)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.out(self.drop(self.norm(self.hidden(x)).relu()))
        return out


def trained() -> tuple[Net, Bundle]:
    torch.manual_seed(3)
    net = Net()
    net(torch.randn(8, 3))  # moves the running statistics off their start
    bundle = FlatModule(net).bundle()
    bundle.data.flags.writeable = False  # as weights from a checkpoint are
    return net.eval(), bundle


def never() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    raise AssertionError("the weights alone need no model")


def test_safetensors_hold_every_weight_by_name_and_what_they_are_about(tmp_path: Path) -> None:
    net, weights = trained()
    path = export(weights, tmp_path / "w.safetensors", never, {"job": "digits", "version": "100"})
    found = load_file(path)
    assert found.keys() == net.state_dict().keys()
    for name, tensor in net.state_dict().items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    with safe_open(path, framework="np") as file:
        assert file.metadata() == {"job": "digits", "version": "100"}


def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    values = torch.tensor([1.5, -2.0, 3.25], dtype=torch.bfloat16)
    weights = Bundle.zeros(Layout.of({"w": ("bf16", (3,))}))
    weights["w"][...] = values.view(torch.uint16).numpy()
    assert torch.equal(load_file(export(weights, tmp_path / "w.safetensors", never))["w"], values)


@pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")  # torch.export's own
@pytest.mark.parametrize("batch", [1, 4])
def test_an_exported_program_gives_the_same_outputs_for_any_batch(tmp_path: Path, batch: int) -> None:
    net, weights = trained()
    path = export(weights, tmp_path / "m.pt2", lambda: (Net(), (torch.zeros(batch, 3),)))
    program = torch.export.load(path).module()
    for n in (1, 2, 7):
        x = torch.randn(n, 3, generator=torch.Generator().manual_seed(n))
        torch.testing.assert_close(program(x), net(x), rtol=0, atol=0)


@pytest.mark.parametrize("memory", ["none", "lstm"])
def test_an_onnx_file_gives_the_same_outputs_for_any_batch(tmp_path: Path, memory: str) -> None:
    pytest.importorskip("onnxscript", reason="the extra shoal[onnx] is not installed")
    from onnx.reference import ReferenceEvaluator

    job = shoal.Reinforcement("CartPole-v1", method="ppo", hidden=(8,), memory=memory)
    module, (seen, *state) = job.module(), job.problem.example(job.method, 0)
    weights = FlatModule(job.module()).bundle()
    path = export(weights, tmp_path / "policy.onnx", lambda: (job.module(), (seen, *state)))
    read = ReferenceEvaluator(str(path))
    for n in (1, 2, 7):
        generator = torch.Generator().manual_seed(n)
        given = torch.randn((n, 4), generator=generator)
        before = [{name: torch.randn((n, 128), generator=generator) for name in each} for each in state]
        with torch.no_grad():
            logits, value, *after = module(given, *before)
        arrays = [given, *(array for each in before for array in each.values())]
        found = read.run(None, dict(zip(read.input_names, (array.numpy() for array in arrays), strict=True)))
        wanted = [logits, value, *(array for each in after for array in each.values())]
        for ours, theirs in zip(wanted, found, strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")  # torch.export's own
def test_an_onnx_file_of_a_policy_of_box_actions_is_written_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnxscript", reason="the extra shoal[onnx] is not installed")
    from onnx.reference import ReferenceEvaluator

    job = shoal.Reinforcement("Pendulum-v1", method="ppo", hidden=(5,), preset="none")
    weights = FlatModule(job.module()).bundle()
    path = export(weights, tmp_path / "policy.onnx", lambda: (job.module(), job.problem.example(job.method, 0)))
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    seen = torch.tensor([[0.5, -0.5, 3.0]])
    with torch.no_grad():
        (mean, _), value = job.module()(seen)
    read = ReferenceEvaluator(str(path))
    found = read.run(None, {read.input_names[0]: seen.numpy()})
    np.testing.assert_allclose(found[0], mean.numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[-1], value.numpy(), rtol=1e-4, atol=1e-6)


def test_onnx_needs_an_extra_and_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"needs onnxscript, which is not installed: pip install 'shoal\[onnx\]', or use .pt2"):
        export(trained()[1], tmp_path / "m.onnx", lambda: (Net(), (torch.zeros(2, 3),)))
    assert list(tmp_path.iterdir()) == []


def test_exporting_does_not_touch_the_weights(tmp_path: Path) -> None:
    _, weights = trained()
    module = Net()
    load(module, weights)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert np.array_equal(weights.data, trained()[1].data)


@pytest.mark.parametrize(
    ("to", "said"),
    [("w.pth", "cannot write .pth; use .safetensors, .pt2 or .onnx"), ("w", "without a suffix"), ("no/w.pt2", "no folder")],
)
def test_what_cannot_be_written_is_one_line(tmp_path: Path, to: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        export(trained()[1], tmp_path / to, never)
    assert "\n" not in str(error.value)


def test_a_file_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_text("precious")
    with pytest.raises(UserError, match="exists; name another file"):
        export(trained()[1], tmp_path / "w.safetensors", never)
    assert (tmp_path / "w.safetensors").read_text() == "precious"


def test_weights_of_another_model_are_refused_and_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not this model's"):
        export(trained()[1], tmp_path / "m.pt2", lambda: (Net(width=6), (torch.zeros(2, 3),)))
    assert list(tmp_path.iterdir()) == []


class Tied(nn.Module):
    """Two layers of one weight, a buffer that a state_dict has not, and one that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.second.weight = self.first.weight
        self.register_buffer("mask", torch.ones(3), persistent=False)
        self.register_buffer("scale", torch.full((3,), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.out(self.second(self.first(x)) * self.mask * self.scale)
        return out


def test_a_run_of_tied_weights_and_passing_buffers_exports_what_loads_strictly(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = np.random.default_rng(1).normal(size=(60, 3)), np.arange(60) % 2
    first = shoal.export(
        shoal.run(shoal.Federated(Tied, (x, y), rounds=1, clients=3, cohort=3), actors=0, show=False), "a.safetensors"
    )
    job = shoal.Federated(Tied, (x, y), rounds=1, clients=3, cohort=3, initial_weights=str(first))
    run = shoal.run(job, actors=0, show=False)
    first.unlink()
    net, inputs = Tied().eval(), torch.randn(4, 3)
    net.load_state_dict(load_file(shoal.export(run, "b.safetensors")), strict=True)
    assert torch.equal(net(inputs), run.model()(inputs))
    assert torch.equal(net(inputs), torch.export.load(shoal.export(run, "b.pt2")).module()(inputs))


def test_weights_load_into_a_model_that_has_its_arrays_in_another_order() -> None:
    net, weights = trained()
    turned = {p.name: weights[p.name] for p in reversed(weights.layout.places)}
    load(into := Net(), Bundle.pack(turned))
    assert all(torch.equal(into.state_dict()[name], its) for name, its in net.state_dict().items())


class Moody:
    """A model's factory that makes models until it is told to raise this error."""

    def __init__(self) -> None:
        self.raises: Exception | None = None

    def __call__(self) -> nn.Module:
        if self.raises is not None:
            raise self.raises
        return nn.Linear(3, 2)


@pytest.mark.parametrize("raised", [KeyError("colour"), RuntimeError("no\nlicence"), OSError(2, "gone")])
def test_a_model_that_cannot_be_made_here_costs_an_export_one_line_and_no_weights(
    tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str], raised: Exception
) -> None:
    monkeypatch.chdir(tmp_path)
    moody, (x, y) = Moody(), (np.random.default_rng(1).normal(size=(60, 3)), np.arange(60) % 2)
    run = shoal.run(shoal.Federated(moody, (x, y), rounds=1, clients=3, cohort=3), actors=0, show=False)
    moody.raises = raised
    capsys.readouterr()
    found = load_file(shoal.export(run, "w.safetensors"))
    [line] = capsys.readouterr().err.splitlines()
    assert "the job's model cannot be made here: " in line
    assert "test_export.py, line " in line
    assert type(raised).__name__ in line
    assert {name: tuple(one.shape) for name, one in found.items()} == {"weight": (2, 3), "bias": (2,)}
    with pytest.raises(UserError, match="the job's model cannot be made here: ") as error:
        shoal.export(run, "w.pt2")
    assert "\n" not in str(error.value)
