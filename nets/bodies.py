"""Built-in networks that turn observations into features: perceptrons, Nature CNN, IMPALA's ResNet, and concatenation.

The one idea: a part of an observation that is a picture has a network of its own, every other part is flattened, and features
lie one after the other (nets/pictures.py chooses). Weights are drawn from a generator that is handed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from shoal.envs.spaces import Named, Part, Spaces
from shoal.nets.pictures import CODES, GRID_MOST, PIXELS, Picture, chosen, deep, picture

BLOCK = 128  # pictures that go through all layers before the next ones: their memory is small enough to be used again


def _orthogonal(layer: nn.Conv2d | nn.Linear, gain: float, generator: torch.Generator) -> None:
    nn.init.orthogonal_(layer.weight, gain, generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def linear(inputs: int, outputs: int, gain: float, generator: torch.Generator) -> nn.Linear:
    """A linear layer with orthogonal weights of this gain and biases of 0."""
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")  # no draw from torch's own generator
    _orthogonal(layer, gain, generator)
    return layer


def uniform_linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with weights and biases uniform within 1 / sqrt(inputs), as torch draws those of nn.Linear."""
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")  # no draw from torch's own generator
    bound = 1 / math.sqrt(inputs)
    for parameter in (layer.weight, layer.bias):
        nn.init.uniform_(parameter, -bound, bound, generator)
    return layer


def active(x: torch.Tensor, activation: str) -> torch.Tensor:
    """The outputs of a layer behind its activation, "tanh" or "relu"."""
    return torch.tanh(x) if activation == "tanh" else torch.relu(x)


def convolution(
    inputs: int,
    outputs: int,
    size: int,
    generator: torch.Generator,
    stride: int = 1,
    padding: int = 0,
    gain: float = math.sqrt(2),
    scale: float = 0.0,
) -> nn.Conv2d:
    """A convolution with orthogonal weights of this gain and biases of 0. scale: of bytes, which are divided by it; 0: of
    floats."""
    layer = (BytesConv2d if scale else nn.Conv2d)(inputs, outputs, size, stride, padding, device="meta").to_empty(device="cpu")
    if isinstance(layer, BytesConv2d):
        layer.scale = scale
    _orthogonal(layer, gain, generator)
    return layer


class Pixels(nn.Module):
    """Bytes [N, *shape] of pictures as bytes [N, channels, height, width]."""

    def __init__(self, of: Picture) -> None:
        super().__init__()
        self.of = of
        self.order = (0, *(1 + axis for axis in of.order))

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order).reshape(-1, self.of.channels, self.of.height, self.of.width)


class BytesConv2d(nn.Conv2d):
    """A convolution of bytes [N, C, H, W] that are divided by `scale`.

    The weights are divided and not the pixels, which are more. On a CPU a pass that is learned from has its channels last in
    memory, with which a convolution's gradients take two thirds of the time; a pass alone is a little quicker as it comes.
    """

    scale = PIXELS

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.to(self.weight.dtype, memory_format=torch.channels_last)
        return nn.functional.conv2d(pixels, self.weight / self.scale, self.bias, self.stride, self.padding)


class Residual(nn.Module):
    """x plus two convolutions of x. The second one is scaled down, so that six blocks in a row at most double the variance."""

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.first = convolution(channels, channels, 3, generator, padding=1)
        self.second = convolution(channels, channels, 3, generator, padding=1, gain=math.sqrt(2 / 6))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.second(torch.relu_(self.first(torch.relu(x))))
        return found


def _nature(of: Picture, generator: torch.Generator, scale: float) -> tuple[list[nn.Module], int]:
    layers: list[nn.Module] = [
        convolution(of.channels, 32, 8, generator, stride=4, scale=scale),
        nn.ReLU(inplace=True),
        convolution(32, 64, 4, generator, stride=2),
        nn.ReLU(inplace=True),
        convolution(64, 64, 3, generator),
        nn.ReLU(inplace=True),
    ]
    return layers, 512


def _impala(of: Picture, generator: torch.Generator, scale: float) -> tuple[list[nn.Module], int]:
    layers: list[nn.Module] = []
    inputs = of.channels
    for channels in (16, 32, 32):
        first = convolution(inputs, channels, 3, generator, padding=1, scale=0.0 if layers else scale)
        layers += [first, nn.MaxPool2d(3, 2, 1)]
        layers += [Residual(channels, generator), Residual(channels, generator)]
        inputs = channels
    return [*layers, nn.ReLU(inplace=True)], 256


def _small(of: Picture, generator: torch.Generator, scale: float) -> tuple[list[nn.Module], int]:
    layers: list[nn.Module] = [
        convolution(of.channels, 16, 3, generator, padding=1, scale=scale),
        nn.ReLU(inplace=True),
        convolution(16, 32, 3, generator, stride=2, padding=1),
        nn.ReLU(inplace=True),
        convolution(32, 64, 3, generator, stride=2, padding=1),
        nn.ReLU(inplace=True),
    ]
    return layers, 256


CONVOLUTIONS: Mapping[str, Callable[[Picture, torch.Generator, float], tuple[list[nn.Module], int]]] = {
    "nature": _nature,
    "impala": _impala,
    "small": _small,
}


def convolved(part: Part, kind: str, generator: torch.Generator) -> tuple[nn.Sequential, int]:
    """A network from pictures, uint8 [N, *shape], to features [N, n], and n. kind: a name in CONVOLUTIONS."""
    of = picture(part)
    assert of is not None
    scale = CODES if kind == "small" and max(of.height, of.width) <= GRID_MOST else PIXELS
    layers, features = CONVOLUTIONS[kind](of, generator, scale)
    body = nn.Sequential(Pixels(of), *layers, nn.Flatten())
    with torch.no_grad():
        flat = body(torch.zeros((1, *part.shape), dtype=torch.uint8)).shape[1]
    return body.extend([linear(flat, features, math.sqrt(2), generator), nn.ReLU(inplace=True)]), features


class Body(nn.Module):
    """Observations to features [N, `features`]: pictures through convolutions, everything else flattened, one after the other.

    Takes a tensor [N, *shape], or part -> tensor for a Dict or Tuple. deep: True if a part is convolved. precision: "float32";
    or "bf16", in which convolutions and the layer after them are computed from weights that are rounded for each pass. Weights,
    gradients and features are float32 in both.
    """

    def __init__(self, spaces: Spaces, network: str, generator: torch.Generator) -> None:
        super().__init__()
        seen = spaces.observation
        self.named = isinstance(seen, Named)
        parts = seen.named if isinstance(seen, Named) else {"": seen}
        self.ranks = {name: len(part.shape) for name, part in parts.items()}
        self.precision = "float32"
        self.nets = nn.ModuleList()
        self.places: dict[str, int] = {}
        self.features = 0
        for name, part in parts.items():
            if (kind := chosen(part, network)) == "mlp":
                self.features += part.size
                continue
            net, features = convolved(part, kind, generator)
            self.places[name] = len(self.nets)
            self.nets.append(net)
            self.features += features

    @property
    def deep(self) -> bool:
        return bool(self.places)

    def forward(self, seen: Tensor | Mapping[str, Tensor]) -> Tensor:
        if isinstance(seen, Tensor):
            return self._part("", seen)
        return torch.cat([self._part(name, seen[name]) for name in self.ranks], dim=-1)

    def _part(self, name: str, x: Tensor) -> Tensor:
        if name not in self.places:
            return flattened(x, self.ranks[name])
        module = self.nets[self.places[name]]
        net: Callable[[Tensor], Tensor] = partial(_rounded, module) if self.precision == "bf16" else module
        if x.device.type == "cpu" and len(x) >= 2 * BLOCK and not torch.compiler.is_compiling():
            return torch.cat([net(some) for some in x.tensor_split(len(x) // BLOCK)])
        found: Tensor = net(x)
        return found


def _rounded(net: nn.Module, x: Tensor) -> Tensor:
    """The features of pictures, float32, computed in bfloat16. Each call rounds the weights itself, so that the gradients of
    several calls are summed in float32."""
    weights = {name: weight.to(torch.bfloat16) for name, weight in net.named_parameters()}
    found: Tensor = functional_call(net, weights, (x,)).float()
    return found


def precise(module: nn.Module, precision: str) -> nn.Module:
    """The module itself, whose bodies compute in this precision from now on."""
    for part in module.modules():
        if isinstance(part, Body):
            part.precision = precision
    return module


def body_of(spaces: Spaces | None, pictures: str, precision: str, seed: int) -> Body | None:
    """The network that makes features of observations that have several parts or pictures; None for others, which need only be
    flattened. pictures: "auto", "mlp", "nature" or "impala"."""
    if spaces is None or not (isinstance(spaces.observation, Named) or deep(spaces, pictures)):
        return None
    body = Body(spaces, pictures, torch.Generator().manual_seed(seed))
    body.precision = precision
    return body


def flattened(x: Tensor, rank: int) -> Tensor:
    """Observations [..., *shape], of `rank` dimensions, as rows of float32. Bytes (pictures) are scaled to [0, 1]."""
    rows = x.unsqueeze(-1) if rank == 0 else x.flatten(-rank)
    return rows.float() / PIXELS if rows.dtype == torch.uint8 else rows
