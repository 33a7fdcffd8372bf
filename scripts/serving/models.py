"""The model of a job, made ready to answer: its weights loaded, and made faster if the user asked for that.

The one idea: what is made faster is measured before it serves, on the run's own held-out data, and is refused if it lost more
than the user allows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from shoal.nets.evaluation import tallied, tensors
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.runs.export import load, untrained
from shoal.serving.inputs import Array, Inputs
from shoal.serving.server import Compute

if TYPE_CHECKING:
    from shoal.jobs.job import Job

EVALUATED = 1_000  # held-out examples in a forward pass


@dataclass(frozen=True, slots=True)
class Faster:
    """The ways in which a model is made faster. compile: by torch.compile. dtype: "float32" or "bf16". quantize: "" or "int8",
    of linear layers, by torch's dynamic quantization. max_loss: what accuracy may lose (0.01: a point of a hundred), or
    held-out loss may gain as a share of itself."""

    compile: bool = False
    dtype: str = "float32"
    quantize: str = ""
    max_loss: float = 0.01

    @property
    def asked(self) -> str:
        """The flags that ask for it; "" if none does."""
        flags = ("--compile" * self.compile, f"--dtype {self.dtype}" * (self.dtype != "float32"))
        return " ".join(filter(None, (*flags, f"--quantize {self.quantize}" * bool(self.quantize))))


class Cast(nn.Module):
    """A module in another dtype of floats, which takes and gives float32."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module.to(dtype), dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return first(self.module(x.to(self.dtype) if x.is_floating_point() else x)).float()


def first(outputs: Any) -> torch.Tensor:
    """The outputs of a module; of several (a policy gives logits and values) the first. Raises UserError for no tensor."""
    while isinstance(outputs, tuple | list) and outputs:
        outputs = outputs[0]
    if not isinstance(outputs, torch.Tensor):
        raise UserError(f"the model gave {type(outputs).__name__}: expected a tensor, or a tuple that begins with one")
    return outputs


class Maker:
    """Makes the models of a job: weights -> a function from rows to outputs. most: rows of a request. say: told what the faster
    form lost. Raises UserError if the job has no torch model, or if a faster form cannot be measured."""

    def __init__(self, job: Job, faster: Faster, most: int, say: Callable[[str], None]) -> None:
        self.job, self.faster, self.say = job, faster, say
        example = job.problem.example(job.method, job.seed)
        if len(example) != 1:
            raise UserError(f"{job.name}: its model takes {len(example)} inputs: a server takes one array of rows")
        self.example: Array = example[0].numpy()
        self.inputs = Inputs(self.example.shape[1:], self.example.dtype.name, most)
        self._measure = self._measuring() if faster.asked else None

    def __call__(self, weights: Bundle) -> Compute:
        module = self._plain(weights)
        if self._measure is None:
            return computing(module)
        faster = self._faster(self._plain(weights))
        self._compared(self._measure(module), self._measure(faster))
        return computing(faster)

    def _plain(self, weights: Bundle) -> nn.Module:
        module = untrained(self.job).eval()
        load(module, weights)
        return module

    def _faster(self, module: nn.Module) -> nn.Module:
        how = self.faster
        if how.quantize:
            module = quantized(module)
        if how.dtype == "bf16":
            module = Cast(module, torch.bfloat16)
        if how.compile:
            module = cast(nn.Module, torch.compile(module, dynamic=True))
        return module

    def _measuring(self) -> Callable[[nn.Module], dict[str, float]]:
        """The function that measures a module on the held-out data. Raises UserError if there is none."""
        problem, job = self.job.problem, self.job
        population = getattr(problem, "population", None)
        held_out = population(job.method, job.seed).held_out if population else None
        if held_out is None or population is None:
            raise UserError(f"{self.faster.asked}: {job.name} has no held-out data to measure it on: leave it out")
        loss, data = problem.loss_function(), tensors(held_out, "cpu")  # type: ignore[attr-defined]

        def measure(module: nn.Module) -> dict[str, float]:
            totals = tallied(module, data, loss, EVALUATED)
            return {name: total / count for name, (total, count) in totals.items() if count}

        return measure

    def _compared(self, plain: dict[str, float], faster: dict[str, float]) -> None:
        """Tell what the faster form lost. Raises UserError if that is more than the user allows."""
        name = "accuracy" if "accuracy" in plain else "loss"
        before, after = plain[name], faster.get(name, float("nan"))
        lost = before - after if name == "accuracy" else (after - before) / max(abs(before), 1e-12)
        label = "accuracy" if name == "accuracy" else "held-out loss"
        told = f"{self.faster.asked}: {label} {after:.4f} in place of {before:.4f} on held-out data"
        if not lost <= self.faster.max_loss:
            share = "" if name == "accuracy" else " of itself"
            raise UserError(f"{told}: a loss of {lost:.4f}{share}, of at most {self.faster.max_loss:g} (--max-loss)")
        self.say(told)


def quantized(module: nn.Module) -> nn.Module:
    """The module with linear layers of 8-bit weights, by torch's own dynamic quantization. Raises UserError if this torch has
    none, or the module no linear layer."""
    if not any(isinstance(part, nn.Linear) for part in module.modules()):
        raise UserError("--quantize int8: the model has no linear layer to quantize: leave it out")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch moves it to a package of its own, and says so at each call
            quantize: Any = torch.ao.quantization.quantize_dynamic
            made: nn.Module = quantize(module, {nn.Linear}, dtype=torch.qint8)
    except (AttributeError, RuntimeError, NotImplementedError) as none:
        raise UserError(f"--quantize int8: this torch ({torch.__version__}) cannot: {none}") from None
    return made


def computing(module: nn.Module) -> Compute:
    """The function from rows to outputs, in numpy's arrays."""

    def compute(rows: Array) -> Array:
        with torch.inference_mode():
            outputs = first(module(torch.from_numpy(rows if rows.flags.writeable else rows.copy())))
        found: Array = (outputs.float() if outputs.dtype == torch.bfloat16 else outputs).numpy()
        return np.ascontiguousarray(found)

    return compute
