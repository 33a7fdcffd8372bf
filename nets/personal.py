"""The places of personal tensors in a model's flat vector: by the beginning of their names, or because they are batch norm's.

The one idea: what stays with a client is a fixed set of float32 entries, so it is a row of numbers whatever the layers are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from shoal.protocol.errors import UserError
from shoal.protocol.layout import Layout


def norms(module: nn.Module) -> tuple[str, ...]:
    """The names of the batch and instance normalisation layers of a module. Raises UserError if there are none."""
    found = tuple(name for name, part in module.named_modules() if isinstance(part, _NormBase))
    if not found:
        raise UserError("method=fedbn: the model has no batch norm layer to stay with the clients; method=fedavg does the same")
    return found


def places(layout: Layout, personal: Sequence[str], setting: str = "personal") -> npt.NDArray[np.int64]:
    """The places, in the vector of float32 entries, of the tensors that are called as one of `personal`, or whose name begins
    with one of them and a dot. Frozen parameters, which no client changes, are left out.

    Raises UserError, naming `setting`, for a name that no tensor has, and if no tensor or every tensor is personal.
    """
    entries: list[npt.NDArray[np.int64]] = []
    used: set[str] = set()
    start, _ = layout.segments.get("f4", (0, 0))
    moving = [place for place in layout.places if place.dtype == "f4" and place.name not in layout.still]
    for place in moving:
        if names := [name for name in personal if place.name == name or place.name.startswith(f"{name}.")]:
            used.update(names)
            first = (place.offset - start) // 4
            entries.append(np.arange(first, first + place.nbytes // 4))
    layers = dict.fromkeys(place.name.rpartition(".")[0] or place.name for place in moving)
    known = f"the model has {', '.join(list(layers)[:20])}"
    if lost := [name for name in personal if name not in used]:
        raise UserError(f"{setting}={','.join(personal)}: no layer is called {lost[0]}; {known}")
    if not personal or len(entries) == len(moving):
        raise UserError(
            f"{setting}={','.join(personal)}: must name some layers, not {'all' if personal else 'none'}; {known}; "
            f"{setting}={[*layers][-1]}, say"
        )
    return np.concatenate(entries)
