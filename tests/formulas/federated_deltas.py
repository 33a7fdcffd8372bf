"""Small models and deltas for the federated formulas, and what a term of the exact form is by definition."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.work import Contribution, Task, Work

LAYOUT = Layout.of(
    {
        "layer.weight": ("f4", (5, 3)),
        "layer.bias": ("f4", (3,)),
        "norm.mean": ("f4", (3,)),
        "norm.batches": ("i8", ()),
        "half": ("f2", (4,)),
        "brain": ("bf16", (4,)),
        "double": ("f8", (2,)),
        "mask": ("b1", (3,)),
        "bytes": ("u1", (3,)),
    }
)
TRAINABLE = 18  # layer.weight and layer.bias


def bits(values: Sequence[float]) -> np.ndarray[Any, Any]:
    """bfloat16, as it travels: the upper half of a float32 (these values need no rounding)."""
    return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def random_bundle(seed: int, size: float = 1.0) -> Bundle:
    draw = np.random.default_rng(seed)
    arrays: dict[str, Any] = {p.name: draw.normal(0, size, p.shape) for p in LAYOUT.places}
    arrays["norm.batches"] = draw.integers(-20, 20)
    arrays["brain"] = bits(draw.normal(0, size, 4).tolist())
    arrays["mask"] = draw.integers(0, 2, 3)
    arrays["bytes"] = draw.integers(0, 256, 3)
    return Bundle.pack(arrays, LAYOUT)


def vector(values: Sequence[float] | np.ndarray[Any, Any]) -> Bundle:
    """A model of one float32 vector."""
    return Bundle.pack({"w": np.asarray(values, np.float32)})


def contribution(
    bundle: Bundle,
    weight: float = 1.0,
    *,
    lag: int = 0,
    client: int = 0,
    summed: bool = False,
    norm: float | None = None,
) -> Contribution:
    return Contribution(Task(0, client, (client,)), 0, lag, Work(bundle, weight), summed, norm)


def term(weight: float, x: float) -> int:
    """One float32 entry's term in units of 2**-32, after grid.py's definition, in exact arithmetic."""
    return round(Fraction(float(np.float32(weight) * np.float32(x))) * 2**32)  # round() of a Fraction is half to even
