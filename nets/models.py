"""Models for the data sets of envs/datasets.py.

The one idea: a model is a factory without arguments, and a seed says where its weights start: `seeded` makes any factory
reproducible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeAlias

from torch import nn

from shoal.protocol import draws
from shoal.protocol.errors import UserError

Model: TypeAlias = Callable[[], nn.Module]


def seeded(model: Model, seed: int) -> nn.Module:
    """The module that the factory makes with all global generators set from `seed`, which are put back afterwards.

    Raises UserError for a factory that makes no module.
    """
    with draws.globally(seed, "model"):
        module = model()
    if not isinstance(module, nn.Module):
        raise UserError(f"model gave {type(module).__name__}: expected a torch.nn.Module")
    return module


def for_training(model: Model) -> nn.Module:
    """The module that the factory makes, in training mode if the factory left the module as a whole in evaluation mode."""
    module = seeded(model, 0)
    return module if module.training else module.train()


def mlp(sizes: Sequence[int] = (64, 64, 10)) -> nn.Module:
    """Linear layers with ReLU between: float32 [B, sizes[0]] -> logits [B, sizes[-1]]. The default sizes fit the digits."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def fedavg_cnn() -> nn.Module:
    """The MNIST CNN of McMahan et al. 2017, section 3: 1,663,370 parameters, float32 [B, 1, 28, 28] -> logits [B, 10]."""
    return nn.Sequential(
        nn.Conv2d(1, 32, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )
