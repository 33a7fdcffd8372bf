"""Models for the data sets of envs/datasets.py.

The one idea: a model is a factory without arguments, and a seed says where its weights start: `seeded` makes any factory
reproducible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeAlias

from torch import Tensor, nn

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


def _digits_cnn(hidden: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


def fedavg_cnn() -> nn.Module:
    """The MNIST CNN of McMahan et al. 2017, section 3: 1,663,370 parameters, float32 [B, 1, 28, 28] -> logits [B, 10]."""
    return _digits_cnn(512, 10)


def leaf_cnn(classes: int = 62) -> nn.Module:
    """LEAF's CNN for FEMNIST (Caldas et al. 2018): 6,603,710 parameters with 62 classes, float32 [B, 1, 28, 28] -> logits
    [B, classes]."""
    return _digits_cnn(2048, classes)


class Standardised(nn.Module):
    """(x - mean) / deviation, by two constants, which are no weights."""

    def __init__(self, mean: float, deviation: float) -> None:
        super().__init__()
        self.mean, self.deviation = mean, deviation

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


def pfl_cnn() -> nn.Module:
    """The CIFAR10 CNN of pfl-research's benchmarks (Granqvist et al. 2024): 1,626,442 parameters, pixels from 0 to 1, float32
    [B, 3, 32, 32] -> logits [B, 10]. Its weights start from Glorot's uniform distribution, as there.

    Pixels are standardised by one mean and one deviation of CIFAR10's training images for all three colours; pfl takes a pair
    for each colour.
    """
    module = nn.Sequential(
        Standardised(0.4734, 0.2516),
        nn.Conv2d(3, 32, kernel_size=3),
        nn.ReLU(),
        nn.Conv2d(32, 64, kernel_size=3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(64 * 14 * 14, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, 10),
    )
    for part in module:
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(part.weight)
    return module


class CharLSTM(nn.Module):
    """LEAF's network for Shakespeare (Caldas et al. 2018): characters int64 [B, T] -> logits of each next character, float32
    [B, letters, T]. An embedding of 8, two LSTM layers of 256, a linear layer."""

    def __init__(self, letters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(letters, 8)
        self.lstm = nn.LSTM(8, 256, num_layers=2, batch_first=True)
        self.linear = nn.Linear(256, letters)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(x))
        logits: Tensor = self.linear(states)
        return logits.transpose(1, 2)  # the axis of classes is the second one for cross entropy
