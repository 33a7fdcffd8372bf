"""Policies in torch: the built-in actor-critic, functions of its outputs, and any other module as an actor's policy.

The one idea: a policy is a module whose forward returns (action parameters, value). Action parameters are a pair (mean,
log_std) for Box actions, and logits for all others (nets/distributions.py). A user's module that does so works everywhere the
built-in policy does; nets/fitting.py looks at what a module returns before anything runs. A module acts and learns in the mode
(training or evaluation) in which it was made, because the learner's probability of an action must be the actor's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from shoal.envs.spaces import Actions, Array, Box, Floats, Named, Spaces, apart
from shoal.nets.acting import OfModule, State, Stochastic
from shoal.nets.bodies import Body, active, flattened, linear
from shoal.nets.distributions import Parameters as Parameters
from shoal.nets.distributions import entropy as entropy
from shoal.nets.distributions import first_rows as first_rows
from shoal.nets.distributions import likelihood as likelihood
from shoal.nets.distributions import log_prob as log_prob
from shoal.nets.distributions import meant
from shoal.nets.fitting import memory_of
from shoal.nets.flat import FlatModule
from shoal.nets.forward import Forward, Found
from shoal.nets.numpy_policy import check_layers
from shoal.nets.pictures import deep

Output = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""A module's action parameters: logits [..., n]; or mean [..., A] and log_std, which is [..., A] or [A]."""
Seen = torch.Tensor | Mapping[str, torch.Tensor]
"""Observations [N, *obs], or the arrays of `Spaces.arrays` by name, each [N, ...]."""
Judge = Callable[[Any], tuple[Output, torch.Tensor]]
"""The forward of a policy: observations [N, *obs], or part -> tensor -> (action parameters, value [N] or [N, 1]). Its attribute
`acts`, if it has one, says which kind of actions its logits are of."""


class ActorCritic(nn.Module):
    """A small perceptron for acting and valuing. Its weights are named actor.I.*, critic.I.* and, if shared, trunk.I.*.

    hidden: sizes of the hidden layers, which actor and critic have each, or (shared=True) both together. Weights are drawn
    from `seed`, orthogonal with gain sqrt(2), 0.01 for the last layer of the actor and 1 for that of the critic; biases are 0
    (Engstrom et al. 2020; Huang et al. 2022). log_std of Box actions is a parameter that does not depend on the state, 0 at
    first.
    """

    def __init__(
        self,
        spaces: Spaces,
        hidden: Sequence[int] = (64, 64),
        activation: str = "tanh",
        shared: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_layers(hidden, activation)
        self.activation, self.acts = activation, spaces.action
        seen = spaces.observation
        self.rank = 0 if isinstance(seen, Named) else len(seen.shape)
        self.ranks = {name: len(part.shape) for name, part in seen.named.items()} if isinstance(seen, Named) else {}
        outputs = spaces.action.size
        generator = torch.Generator().manual_seed(seed)
        before, after = (list(hidden), []) if shared else ([], list(hidden))
        inputs = spaces.observation.size
        if isinstance(spaces.action, Box):
            self.log_std = nn.Parameter(torch.zeros(outputs))
        self.trunk = linears([inputs, *before], math.sqrt(2), generator)
        features = [before[-1] if before else inputs, *after]
        self.actor = linears([*features, outputs], 0.01, generator)
        self.critic = linears([*features, 1], 1.0, generator)

    def forward(self, observation: Seen) -> tuple[Output, torch.Tensor]:
        """The pair (action parameters, value [...]) of observations [..., *obs]. Bytes (pictures) are scaled to [0, 1]. The
        parts of a Dict are flattened, one after the other."""
        return self.heads(self.features(observation))

    def features(self, observation: Seen) -> torch.Tensor:
        """The features [..., F] that both heads share."""
        x = self.rows(observation)
        return active(self._through(self.trunk, x), self.activation) if len(self.trunk) else x

    def rows(self, observation: Seen) -> torch.Tensor:
        """Observations as the first layer takes them, float32 [..., size]."""
        if isinstance(observation, torch.Tensor):
            return flattened(observation, self.rank)
        return torch.cat([flattened(observation[name], rank) for name, rank in self.ranks.items()], dim=-1)

    def heads(self, x: torch.Tensor) -> tuple[Output, torch.Tensor]:
        """The pair (action parameters, value [...]) of features [..., F]."""
        out, value = self._through(self.actor, x), self._through(self.critic, x).squeeze(-1)
        return ((out, self.log_std) if hasattr(self, "log_std") else out), value

    def _through(self, layers: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
        for i, layer in enumerate(layers):
            x = layer(active(x, self.activation) if i else x)
        return x


def linears(sizes: Sequence[int], last_gain: float, generator: torch.Generator) -> nn.ModuleList:
    """Linear layers of these sizes, orthogonal with gain sqrt(2), and `last_gain` for the last; biases are 0."""
    last = len(sizes) - 2
    gains = (last_gain if i == last else math.sqrt(2) for i in range(len(sizes)))
    return nn.ModuleList(linear(*pair, gain, generator) for pair, gain in zip(pairwise(sizes), gains, strict=False))


class DeepActorCritic(nn.Module):
    """A network with convolutions for acting and valuing (nets/bodies.py). Actor and critic share the body, and the gradients
    of both reach it.

    network: "auto", "nature" or "impala", for each picture. hidden, activation: of the perceptrons of actor and critic for an
    observation of several parts; the features of a picture alone go to the last layers at once. Weights are drawn from `seed`,
    orthogonal, as ActorCritic's.
    """

    def __init__(
        self, spaces: Spaces, network: str = "auto", hidden: Sequence[int] = (64, 64), activation: str = "tanh", seed: int = 0
    ) -> None:
        super().__init__()
        self.acts = spaces.action
        generator = torch.Generator().manual_seed(seed)
        self.body = Body(spaces, network, generator)
        towers = list(hidden) if self.body.named else []
        make = {"tanh": nn.Tanh, "relu": nn.ReLU}[activation]
        if isinstance(spaces.action, Box):
            self.log_std = nn.Parameter(torch.zeros(spaces.action.size))
        self.actor = _perceptron([self.body.features, *towers, spaces.action.size], 0.01, make, generator)
        self.critic = _perceptron([self.body.features, *towers, 1], 1.0, make, generator)

    def forward(self, observation: Seen) -> tuple[Output, torch.Tensor]:
        """The pair (action parameters, value [N]) of observations [N, *obs]."""
        x = self.body(observation)
        out, value = self.actor(x), self.critic(x).squeeze(-1)
        return ((out, self.log_std) if hasattr(self, "log_std") else out), value


def _perceptron(
    sizes: Sequence[int], last_gain: float, activation: type[nn.Module], generator: torch.Generator
) -> nn.Sequential:
    layers = nn.Sequential()
    for i, layer in enumerate(linears(sizes, last_gain, generator)):
        layers.extend([activation(), layer] if i else [layer])
    return layers


def built_in(
    spaces: Spaces, network: str = "auto", hidden: Sequence[int] = (64, 64), activation: str = "tanh", seed: int = 0
) -> nn.Module:
    """The built-in actor-critic for these spaces: with convolutions if there are pictures, else ActorCritic."""
    if deep(spaces, network):
        return DeepActorCritic(spaces, network, hidden, activation, seed)
    return ActorCritic(spaces, hidden, activation, seed=seed)


def judged(module: Judge, seen: Seen) -> tuple[Parameters, torch.Tensor]:
    """The pair (action parameters, value [N]) of observations [N, *obs], or of the arrays of `Spaces.arrays`. Choices that
    "action_mask" forbids have probability 0. The module's values may be [N] or [N, 1]."""
    observation, allowed = apart(seen)
    parameters, value = module(observation)
    return meant(parameters, getattr(module, "acts", None), allowed), value.flatten()


def every(seen: Seen, change: Callable[[torch.Tensor], torch.Tensor]) -> Seen:
    """The observations with `change` made to each of their arrays."""
    return change(seen) if isinstance(seen, torch.Tensor) else {name: change(part) for name, part in seen.items()}


class TorchPolicy(OfModule, Stochastic):
    """A module with forward(obs) -> (logits | (mean, log_std), value) as a rollout's policy, in the module's own mode."""

    def __init__(self, module: nn.Module, action: Actions) -> None:
        super().__init__(action, {name: ("f4", shape) for name, shape in memory_of(module).items()})
        self.forward = Forward(FlatModule(module), _read)

    def numbers(self, seen: Array, state: State) -> tuple[Floats, State]:
        return self.forward(seen, state)

    def parameters(self, observation: Array) -> Floats:
        """The numbers [B, P] of observations [B, *obs]: logits, or mean and log_std in one row."""
        return self.forward(observation, {})[0]


def _read(outputs: Any) -> Found:
    """The numbers of an actor-critic's outputs, and its state if it has memory."""
    parameters, _, *after = outputs
    state = after[0] if after else {}
    if isinstance(parameters, torch.Tensor):
        return parameters, state
    mean, log_std = parameters
    return torch.cat([mean, log_std.expand_as(mean)], dim=-1), state
