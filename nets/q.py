"""Q-networks: the value of each action in a state.

The one idea: a Q-network is a module whose forward returns one number for each action. A user's module that does so works
wherever the built-in perceptron does; `fitting` looks at what a module returns before anything runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from shoal.envs.spaces import Actions, Spaces
from shoal.nets.acting import CORES
from shoal.nets.bodies import Body, active, uniform_linear
from shoal.nets.cores import After, scanned, stepped
from shoal.nets.fitting import fitting as checked
from shoal.nets.fitting import form_of, memory_of
from shoal.nets.numpy_policy import check_layers
from shoal.nets.policies import every
from shoal.nets.q_policy import discrete
from shoal.nets.recurrent import CELLS
from shoal.protocol.errors import UserError


class QNetwork(nn.Module):
    """A network for action values. Its weights are named trunk.I.* and q.*; if dueling, trunk.I.*, value.*, advantage.*; those
    of convolutions body.*.

    hidden: sizes of the hidden layers; the features of a picture alone go to the heads at once. pictures: "auto", "mlp",
    "nature" or "impala", for each picture (nets/bodies.py). Parts of a Dict or Tuple lie one after the other. dueling: Q = V +
    A - mean A (Wang et al. 2016, equation 9), with V and A after the last hidden layer. Weights and biases are drawn from
    `seed`, uniform within 1 / sqrt(inputs), as torch draws those of nn.Linear.
    """

    def __init__(
        self,
        spaces: Spaces,
        hidden: Sequence[int] = (64, 64),
        activation: str = "relu",
        dueling: bool = False,
        seed: int = 0,
        pictures: str = "auto",
    ) -> None:
        super().__init__()
        check_layers(hidden, activation)
        actions = discrete(spaces).n
        self.activation = activation
        generator = torch.Generator().manual_seed(seed)
        self.body = Body(spaces, pictures, generator)
        sizes = [self.body.features, *(hidden if self.body.named or not self.body.deep else ())]
        self.trunk = nn.ModuleList([uniform_linear(a, b, generator) for a, b in pairwise(sizes)])
        features = self._core(sizes[-1], generator)
        if dueling:
            self.value, self.advantage = uniform_linear(features, 1, generator), uniform_linear(features, actions, generator)
        else:
            self.q = uniform_linear(features, actions, generator)

    def _core(self, features: int, generator: torch.Generator) -> int:
        """Make what lies between the trunk and the heads. Returns the number of its outputs."""
        return features

    def forward(self, observation: Any) -> Tensor:
        """The values [N, n] of observations [N, *obs], or part -> [N, *shape]. Bytes (pictures) are scaled to [0, 1]."""
        return self.heads(self.features(observation))

    def features(self, observation: Any) -> Tensor:
        """The outputs of the last hidden layer."""
        x: Tensor = self.body(observation)
        for layer in self.trunk:
            x = active(layer(x), self.activation)
        return x

    def heads(self, x: Tensor) -> Tensor:
        """The values of the actions, from features."""
        if hasattr(self, "q"):
            return self.q(x)  # type: ignore[no-any-return]
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(-1, keepdim=True)  # type: ignore[no-any-return]


class RecurrentQNetwork(QNetwork):
    """A perceptron, an LSTM or GRU of `size` units, and the heads of a QNetwork. The core's weights are named core.*.

    memory: name -> shape of one environment's state. Weights of the core are uniform within 1 / sqrt(size), as torch draws
    them.
    """

    def __init__(
        self,
        spaces: Spaces,
        hidden: Sequence[int] = (64,),
        activation: str = "relu",
        dueling: bool = False,
        core: str = "lstm",
        size: int = 128,
        seed: int = 0,
        pictures: str = "auto",
    ) -> None:
        if core not in CORES:
            raise UserError(f"memory={core!r}: must be one of {', '.join(CORES)}")
        self._kind, self._size = core, size
        super().__init__(spaces, hidden, activation, dueling, seed, pictures)
        self.memory = dict.fromkeys(CORES[core], (size,))

    def _core(self, features: int, generator: torch.Generator) -> int:
        self.core = CELLS[self._kind](features, self._size, device="meta").to_empty(device="cpu")
        bound = 1 / math.sqrt(self._size)
        for parameter in self.core.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator)
        return self._size

    def forward(self, observation: Any, state: Mapping[str, Tensor]) -> Any:  # type: ignore[override]  # it remembers
        """The pair (values [N, n], state) of observations [N, *obs] and the state before them."""
        after = stepped(self.core, self.features(observation), state)
        return self.heads(after["h"]), after

    def unroll(self, observation: Any, state: Mapping[str, Tensor], first_TB: Tensor) -> tuple[Tensor, After]:
        """The pair (values [T, N, n], state after each row) of observations [T, N, *obs], or part -> [T, N, *shape]. state:
        before the first row. first: bool [T, N], True where a row begins an episode, before which the state is zeros."""
        x = self.features(every(observation, lambda part: part.flatten(0, 1)))
        h_TB, after = scanned(self.core, x.view(*first_TB.shape, -1), state, first_TB)
        return self.heads(h_TB), after


def fitting(module: Any, spaces: Spaces, remembers: bool = False) -> nn.Module:
    """Returns the module. Raises UserError, one line, unless it is a Q-network for these spaces (nets/fitting.py): a module
    whose forward gives one finite number for each action, [N, n] for N observations."""
    discrete(spaces)
    if not isinstance(module, nn.Module):
        raise UserError(f"policy: made {type(module).__name__}; expected a torch.nn.Module")
    memory = memory_of(module)
    if bool(memory) is not remembers:
        named = f"policy: {type(module).__name__}"
        if memory:
            raise UserError(
                f"{named} has memory ({', '.join(memory)}), and the job's method learns without; method=r2d2 learns it"
            )
        raise UserError(f"{named} has no attribute memory, and the job's method needs one; method=dqn learns it")
    return checked(module, spaces, remembers, values, noisy=True)


def values(out: Any, n: int, action: Actions) -> list[Tensor]:
    """The values in a Q-network's output for n observations. Raises UserError for an output of another form."""
    wanted = f"[{n}, {action.size}]"
    if not isinstance(out, Tensor) or tuple(out.shape) != (n, action.size) or not out.is_floating_point():
        raise UserError(
            f"policy: forward gave {form_of(out)} for {n} observations; a Q-network gives one value for each action, "
            f"{wanted} of floats (a policy with (logits, value) is for ppo or impala)"
        )
    if out.isinf().any():
        raise UserError("policy: forward gave a value that is not finite; expected finite values")
    return [out]
