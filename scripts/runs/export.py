"""A trained model for use elsewhere: its weights as safetensors, or the whole forward pass, for torch.export or for ONNX.

The one idea: a reader of either file needs no Shoal, and reading it cannot run code.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.protocol.errors import ProtocolError, UserError, printable
from shoal.protocol.layout import Bundle
from shoal.runs.targets import writable

if TYPE_CHECKING:
    import torch
    from torch import nn

    from shoal.jobs.job import Job

    Model = Callable[[], tuple[nn.Module, tuple[Any, ...]]]
    """() -> the job's module, with any weights, and example inputs: tensors, or maps of tensors, whose first dimension is the
    batch."""


def export(
    weights: Bundle,
    to: Path | str,
    model: Model,
    about: Mapping[str, str] | None = None,
    module: Callable[[], nn.Module] | None = None,
) -> Path:
    """Write `weights` to a new file and return its path. The suffix .safetensors, .pt2 or .onnx decides the form. `model` is
    called only for the latter two, and `module` only for .safetensors, which then holds the module's state_dict, for a strict
    load_state_dict: tied weights under each name, and no buffer that is not persistent. None: the names of `weights`. `about`
    becomes the metadata of .safetensors.

    Raises UserError for another suffix, for a missing folder, and for a file that exists: an existing file is kept.
    """
    path = writable(to, (".safetensors", ".pt2", ".onnx"), verb="write", new=True)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(tensors_of(weights) if module is None else _state(module(), weights), part, metadata=dict(about or {}))
        else:
            write = _write_onnx if path.suffix == ".onnx" else _write_program
            write(weights, part, *model())
        part.replace(path)  # whole or not at all
    finally:
        part.unlink(missing_ok=True)
    return path


def _write_program(weights: Bundle, path: Path, module: nn.Module, example: tuple[Any, ...]) -> None:
    import torch

    torch.export.save(_program(weights, module, example), path)


def _write_onnx(weights: Bundle, path: Path, module: nn.Module, example: tuple[Any, ...]) -> None:
    import torch

    try:
        import onnxscript  # noqa: F401  the translator, which brings onnx
    except ModuleNotFoundError:
        raise UserError(".onnx needs onnxscript, which is not installed: pip install 'shoal[onnx]', or use .pt2") from None
    with warnings.catch_warnings(), _quiet("torch.onnx"), _quiet("onnx_ir"):
        warnings.simplefilter("ignore")  # torch's own, about itself
        program = _program(weights, module, example)
        try:
            torch.onnx.export(program, f=path, dynamo=True, external_data=False, verbose=False)
        except torch.onnx.OnnxExporterError as failed:
            why = printable(" ".join(str(failed).split()), 200)
            raise UserError(f"the model cannot be written as .onnx: {why}; use .pt2") from None


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Hold back the warnings of this logger: of packages that are not installed, and of parts that were not made smaller."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _program(weights: Bundle, module: nn.Module, example: tuple[Any, ...]) -> torch.export.ExportedProgram:
    import torch

    module = module.cpu().eval()
    load(module, weights)

    def two(x: torch.Tensor) -> torch.Tensor:
        return x.cpu() if len(x) > 1 else torch.cat([x, x]).cpu()  # torch.export would take a batch of 1 for a fixed size

    def any_batch(x: torch.Tensor) -> Any:
        return {0: torch.export.Dim.AUTO}

    inputs, sizes = (tuple(_each(make, x) for x in example) for make in (two, any_batch))
    return torch.export.export(module, inputs, dynamic_shapes=sizes)


def _each(make: Callable[[torch.Tensor], Any], given: Any) -> Any:
    """The result of `make` for a tensor, or for each tensor of a map."""
    return {name: make(x) for name, x in given.items()} if isinstance(given, Mapping) else make(given)


def tensors_of(weights: Bundle) -> dict[str, torch.Tensor]:
    """Name -> tensor with memory of its own; bfloat16 arrays become torch.bfloat16 tensors."""
    from shoal.nets.flat import TORCH_DTYPES, as_tensor

    return {p.name: as_tensor(weights[p.name]).view(TORCH_DTYPES[p.dtype]).clone() for p in weights.layout.places}


def _state(module: nn.Module, weights: Bundle) -> dict[str, torch.Tensor]:
    import torch

    load(module.cpu(), weights)
    return {name: its.clone().contiguous() for name, its in module.state_dict().items() if isinstance(its, torch.Tensor)}


def untrained(job: Job) -> nn.Module:
    """The job's module, to load weights into: the file `initial_weights` (or `init`) need not be there. Raises UserError if the
    job has no torch model."""
    return job.configured({name: "" for name in ("initial_weights", "init") if name in job.plain()}).module().cpu()


@contextmanager
def of_this_model(folder: Path | str) -> Iterator[None]:
    """Turns a difference between a run's weights and the job's model into a UserError, one line."""
    try:
        yield
    except ProtocolError as other:
        why = "the job's model must be the one that the run began with"
        raise UserError(f"{folder}: the weights are not this model's: {other}; {why}") from None


def load(module: nn.Module, weights: Bundle) -> None:
    """Copy weights into a module that has the same arrays, in any order. Raises UserError if it has others."""
    from shoal.nets.flat import layout_of

    layout = layout_of(module)
    if {p.name: (p.dtype, p.shape) for p in layout.places} != {p.name: (p.dtype, p.shape) for p in weights.layout.places}:
        difference = layout.difference(weights.layout)
        raise UserError(f"the weights are not this model's: {difference}")
    places = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, tensor in tensors_of(weights).items():
        places[name].data.copy_(tensor)
