"""Models for the data sets of envs/datasets.py.

The one idea: a model is a factory without arguments, and a seed says where its weights start: `seeded` makes any factory
reproducible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import nn

from shoal.protocol import draws

Model: TypeAlias = Callable[[], nn.Module]


def seeded(model: Model, seed: int) -> nn.Module:
    """The module that the factory makes with torch's generator seeded from `seed`. The generator's state is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(draws.key(seed, "model") % 2**63)
        return model()


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
