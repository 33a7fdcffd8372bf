"""The kind of network that a method learns unless it brings its own: an actor-critic.

The one idea: a kind of network is an object of three functions that needs no torch until it makes a module, so that an actor
which plays a built-in network in numpy never imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.envs.spaces import Spaces
from shoal.nets.acting import Form, Policy
from shoal.nets.numpy_policy import NumpyPolicy, RecurrentNumpyPolicy
from shoal.nets.pictures import deep, described

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ActorCriticNetwork:
    """Networks with forward(observation) -> (logits | (mean, log_std), value): nets/policies.py. Networks with memory
    (nets/recurrent.py) are for methods whose learner goes through a trajectory in the order of its rows: remembers."""

    remembers: bool = False

    def said(self, spaces: Spaces, form: Form) -> str:
        return described(spaces, form)

    def build(self, spaces: Spaces, form: Form, seed: int) -> nn.Module:
        from shoal.nets.bodies import precise

        if form.memory != "none":
            from shoal.nets.recurrent import RecurrentActorCritic

            core = form.memory, form.memory_size
            found = RecurrentActorCritic(spaces, form.hidden, form.activation, *core, seed, form.pictures)
            return precise(found, form.precision)
        from shoal.nets.policies import built_in

        return precise(built_in(spaces, form.pictures, form.hidden, form.activation, seed), form.precision)

    def fitting(self, module: nn.Module, spaces: Spaces) -> nn.Module:
        from shoal.nets.fitting import fitting

        return fitting(module, spaces, self.remembers)

    def policy(self, spaces: Spaces, form: Form, module: nn.Module | None) -> Policy:
        if module is None and not deep(spaces, form.pictures):
            if form.memory != "none":
                return RecurrentNumpyPolicy(spaces.action, form.activation, form.memory, form.memory_size)
            return NumpyPolicy(spaces.action, form.activation)
        from shoal.nets.policies import TorchPolicy

        return TorchPolicy(module or self.build(spaces, form, 0), spaces.action)


ACTOR_CRITIC = ActorCriticNetwork()
REMEMBERING = ActorCriticNetwork(remembers=True)
