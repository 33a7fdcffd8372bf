"""Perceptrons of the off-policy methods: an actor's, and critics side by side.

The one idea: critics of one shape are one batch of matrices. So two critics cost one multiplication a layer, and no loop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from shoal.envs.spaces import Box, Spaces
from shoal.nets.bodies import Body, active, flattened, uniform_linear
from shoal.nets.numpy_policy import check_layers
from shoal.nets.policies import Seen


class Perceptron(nn.Module):
    """Linear layers with an activation between: [N, sizes[0]] -> [N, sizes[-1]]. Its weights are named I.weight and I.bias.

    Weights and biases are drawn from `generator`, uniform within 1 / sqrt(inputs of the layer), as torch.nn.Linear draws them:
    SAC's and TD3's reference implementations begin so. Raises UserError for an unknown activation or a layer without units.
    """

    def __init__(self, sizes: Sequence[int], activation: str, generator: torch.Generator) -> None:
        super().__init__()
        check_layers(sizes[1:-1], activation)
        self.activation = activation
        for i, (inputs, outputs) in enumerate(pairwise(sizes)):
            self.add_module(str(i), uniform_linear(inputs, outputs, generator))
        self.layers = len(sizes) - 1

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.children()):
            x = layer(x)
            if i < self.layers - 1:
                x = active(x, self.activation)
        return x


class BoxActor(nn.Module):
    """The part that the policies of SAC and TD3 share: observations [N, *obs], or part -> [N, *shape], -> numbers [N, M].

    M: `each` for each number of an action. hidden, activation: of the perceptron, whose weights are named actor.I.*.
    pictures: how pictures are read (nets/bodies.py), by convolutions whose weights are named body.*.
    """

    each: ClassVar[int]

    def __init__(
        self,
        spaces: Spaces,
        hidden: Sequence[int] = (256, 256),
        activation: str = "relu",
        seed: int = 0,
        pictures: str = "auto",
    ) -> None:
        super().__init__()
        assert isinstance(spaces.action, Box)
        generator = torch.Generator().manual_seed(seed)
        self.body = Body(spaces, pictures, generator)
        self.actor = Perceptron((self.body.features, *hidden, self.each * spaces.action.size), activation, generator)

    def numbers(self, observation: Seen) -> Tensor:
        found: Tensor = self.actor(self.body(observation))
        return found


class Critics(nn.Module):
    """`copies` functions Q(observation, action): perceptrons as batches of matrices, which share `body` and nothing else.

    shape: of one observation. actions: numbers in an action. body: the network that makes features of observations; None: they
    are flattened. The parameters are weight_I [copies, inputs, outputs] and bias_I [copies, 1, outputs], drawn from `seed` as
    Perceptron draws its own. precision: "float32"; or "bf16", in which the hidden layers are computed from weights that are
    rounded for each pass. Weights, gradients, the last layer and values are float32 in both.
    """

    def __init__(
        self,
        shape: Sequence[int],
        actions: int,
        hidden: Sequence[int] = (256, 256),
        activation: str = "relu",
        copies: int = 2,
        seed: int = 0,
        body: Body | None = None,
        precision: str = "float32",
    ) -> None:
        super().__init__()
        self.rounded = torch.bfloat16 if precision == "bf16" else None  # None: as the weights are
        sizes = [(body.features if body else math.prod(shape)) + actions, *hidden, 1]
        check_layers(sizes[1:-1], activation)
        self.body = body
        self.activation, self.copies, self.rank = activation, copies, len(shape)
        generator = torch.Generator().manual_seed(seed)
        self._layers: list[tuple[nn.Parameter, nn.Parameter]] = []
        for i, (inputs, outputs) in enumerate(pairwise(sizes)):
            bound = 1 / math.sqrt(inputs)
            weight = nn.Parameter(torch.empty(copies, inputs, outputs).uniform_(-bound, bound, generator=generator))
            bias = nn.Parameter(torch.empty(copies, 1, outputs).uniform_(-bound, bound, generator=generator))
            self.register_parameter(f"weight_{i}", weight)
            self.register_parameter(f"bias_{i}", bias)
            self._layers.append((weight, bias))

    def forward(self, observation: Seen, action: Tensor) -> Tensor:
        """The values [copies, N] of observations [N, *obs] and actions [N, A]. Bytes (pictures) are scaled to [0, 1]."""
        x = torch.cat([self._features(observation), action], dim=-1)
        return self._through(x.expand(self.copies, *x.shape), self._layers)

    def first(self, observation: Seen, action: Tensor) -> Tensor:
        """The values [N] of the first critic alone."""
        x = torch.cat([self._features(observation), action], dim=-1)
        return self._through(x[None], [(weight[:1], bias[:1]) for weight, bias in self._layers])[0]

    def _features(self, observation: Seen) -> Tensor:
        if self.body is not None:
            found: Tensor = self.body(observation)
            return found
        assert isinstance(observation, Tensor)
        return flattened(observation, self.rank)

    def _through(self, x: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        *inner, (last, offset) = layers
        if (dtype := self.rounded) is not None:
            x, inner = x.to(dtype), [(weight.to(dtype), bias.to(dtype)) for weight, bias in inner]
        for weight, bias in inner:
            x = active(torch.baddbmm(bias, x, weight), self.activation)
        return (x * last.transpose(1, 2)).sum(-1) + offset.squeeze(-1)  # a product with one column is slow as a matrix product
