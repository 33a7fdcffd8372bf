"""First weights from a .safetensors file that another run, or another program, saved.

The one idea: all arrays are compared before any array is copied, so a model has either the file's weights or its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from shoal.nets.flat import told
from shoal.protocol.errors import UserError


def read_weights(module: nn.Module, path: Path | str) -> None:
    """Copy the arrays of a .safetensors file into a module. The file is an exported file, a run's snapshot, or a state_dict.

    The file must have every array of the module's state_dict (of tied arrays, one), with its shape and dtype, and no other
    array. Raises UserError naming the file and the first array that does not fit.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            names = [name for name in file.keys() if not name.startswith("state/")]  # noqa: SIM118  # no mapping; a snapshot's
            found = {name.removeprefix("weights/"): file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise UserError(f"{path}: cannot be read as a .safetensors file ({why})") from None
    wanted = module.state_dict(keep_vars=True)
    places = {**dict(module.named_buffers()), **wanted}
    if differs := _difference(found, wanted, places):
        raise UserError(f"{path}: {differs}")
    for name, tensor in found.items():
        places[name].data.copy_(tensor)


def _difference(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> str:
    """The first array that does not fit, in words; "" if all arrays fit."""
    covered = {id(places[name]) for name in found if name in places}
    for name, tensor in wanted.items():
        if id(tensor) not in covered:
            return f"array {name!r} is missing; the model has {told(tensor)} there"
    for name, tensor in found.items():
        if name not in places:
            return f"array {name!r} {told(tensor)} is none of the model's {len(wanted)}: {', '.join(list(wanted)[:4])} ..."
        if tensor.shape != places[name].shape or tensor.dtype != places[name].dtype:
            return f"array {name!r} is {told(tensor)}; the model has {told(places[name])}"
    return ""
