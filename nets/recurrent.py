"""Actor-critics with memory: the built-in one, and any module that has a memory, unrolled over the rows of a trajectory.

The one idea: a learner repeats what the actor did. From the state that came with a trajectory it goes through the rows in their
order, and forgets where an episode begins. So at the weights that acted, the probability of an action is the actor's.

A module has memory if it has an attribute `memory`, name -> shape of one environment's state (float32). Its forward is
(observation [N, *obs], state) -> (action parameters, value, state), with a state of name -> [N, *shape].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shoal.envs.spaces import Spaces, apart
from shoal.nets.acting import CORES
from shoal.nets.bodies import Body
from shoal.nets.cores import After as After
from shoal.nets.cores import forgotten as forgotten
from shoal.nets.cores import scanned, stepped
from shoal.nets.distributions import Parameters, meant
from shoal.nets.pictures import deep
from shoal.nets.policies import ActorCritic, Output, Seen, every, linears
from shoal.protocol.errors import UserError

CELLS: Mapping[str, type[nn.LSTMCell | nn.GRUCell]] = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}


class Unrolled(NamedTuple):
    """A module's outputs for T rows of B environments. parameters: action parameters of T * B observations. value: [T, B].
    after: the state after each row."""

    parameters: Parameters
    value: Tensor
    after: After


class RecurrentActorCritic(ActorCritic):
    """A perceptron, an LSTM or GRU, and a linear layer each for acting and valuing, all but the last shared by both.

    hidden: sizes of the perceptron's layers. core: "lstm" (Hochreiter & Schmidhuber 1997) or "gru" (Cho et al. 2014) of `size`
    units. network: how pictures are read (nets/bodies.py); the features of a picture alone go to the core at once. Weights are
    named body.*, if there are convolutions, trunk.I.*, core.*, actor.0.*, critic.0.*; the core's are orthogonal with gain 1 and
    its biases 0, all others as in ActorCritic.
    """

    def __init__(
        self,
        spaces: Spaces,
        hidden: Sequence[int] = (64,),
        activation: str = "tanh",
        core: str = "lstm",
        size: int = 128,
        seed: int = 0,
        network: str = "mlp",
    ) -> None:
        if core not in CORES:
            raise UserError(f"memory={core!r}: must be one of {', '.join(CORES)}")
        if size < 1:
            raise UserError(f"memory_size={size}: must be a number from 1")
        pictures = deep(spaces, network)
        super().__init__(spaces, () if pictures else hidden, activation, shared=True, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        outputs = spaces.action.size
        self.memory = dict.fromkeys(CORES[core], (size,))
        self.body = Body(spaces, network, generator) if pictures else None
        inputs = spaces.observation.size if self.body is None else self.body.features
        layers = list(hidden) if self.body is None or self.body.named else []
        self.trunk = linears([inputs, *layers], math.sqrt(2), generator)
        self.core = CELLS[core](layers[-1] if layers else inputs, size, device="meta").to_empty(device="cpu")
        for parameter in self.core.parameters():
            if parameter.dim() > 1:
                nn.init.orthogonal_(parameter, 1.0, generator)
            else:
                nn.init.zeros_(parameter)
        self.actor = linears([size, outputs], 0.01, generator)
        self.critic = linears([size, 1], 1.0, generator)

    def forward(self, observation: Seen, state: Mapping[str, Tensor]) -> Any:  # type: ignore[override]
        """The triple (action parameters, value [N], state) of observations [N, *obs] and the state before them."""
        after = stepped(self.core, self.features(observation), state)
        return *self.heads(after["h"]), after

    def unroll(self, observation_TB: Seen, state: Mapping[str, Tensor], first_TB: Tensor) -> tuple[Output, Tensor, After]:
        """The outputs for T * B observations, and the state after each row; arguments as for `unrolled`."""
        features = self.features(every(observation_TB, lambda x: x.flatten(0, 1)))  # all rows at once: no state is in them
        h_TB, after = scanned(self.core, features.view(*first_TB.shape, -1), state, first_TB)
        parameters, value = self.heads(h_TB.flatten(0, 1))
        return parameters, value.view(first_TB.shape), after

    def rows(self, observation: Seen) -> Tensor:
        return super().rows(observation) if self.body is None else self.body(observation)


def unrolled(module: nn.Module, seen_TB: Seen, state: Mapping[str, Tensor], first_TB: Tensor) -> Unrolled:
    """The module's outputs for T rows of B environments, from the state before the first row.

    seen: [T, B, *obs], or the arrays of `Spaces.arrays`; choices that "action_mask" forbids have probability 0. first: bool
    [T, B], True where an observation begins an episode, before which the state is zeros.
    """
    observation_TB, allowed_TB = apart(seen_TB)
    allowed = None if allowed_TB is None else allowed_TB.flatten(0, 1)
    own = not isinstance(module, RecurrentActorCritic) or type(module).forward is not RecurrentActorCritic.forward
    run: Any = partial(_step_by_step, module) if own else module.unroll
    parameters, value, after = run(observation_TB, state, first_TB)
    return Unrolled(meant(parameters, getattr(module, "acts", None), allowed), value, after)


def _step_by_step(
    module: nn.Module, observation_TB: Seen, state: Mapping[str, Tensor], first_TB: Tensor
) -> tuple[Output, Tensor, After]:
    heads: list[Output] = []
    values: list[Tensor] = []
    after: list[Mapping[str, Tensor]] = []
    for t, first in enumerate(first_TB):
        parameters, value, state = module(every(observation_TB, itemgetter(t)), forgotten(state, first))
        heads.append(parameters)
        values.append(value.reshape(len(first)))
        after.append(state)
    return _joined(heads), torch.stack(values), after


def _joined(heads: Sequence[Any]) -> Output:
    """The action parameters of all rows. A log_std that depends on no observation stays as it is."""
    if isinstance(heads[0], Tensor):
        return torch.cat(list(heads))
    means, log_stds = zip(*heads, strict=True)
    mean = torch.cat(means)
    return mean, torch.cat(log_stds) if log_stds[0].dim() == mean.dim() else log_stds[0]


def after_rows(after: After, rows: Tensor) -> Mapping[str, Tensor]:
    """The states [n, ...] after the rows, int64 [n], indexes of the flattened [T * B]."""
    return {name: torch.stack([each[name] for each in after]).flatten(0, 1)[rows] for name in after[0]}
