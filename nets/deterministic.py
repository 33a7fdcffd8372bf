"""The deterministic policy of TD3 in torch (Fujimoto et al. 2018, appendix C): observations -> actions in [-1, 1]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shoal.envs.spaces import Actions
from shoal.nets.fitting import form_of
from shoal.nets.perceptrons import BoxActor
from shoal.nets.policies import Seen
from shoal.protocol.errors import UserError


class DeterministicActor(BoxActor):
    """The policy of TD3: observations -> actions [N, A] in [-1, 1]."""

    each = 1

    def forward(self, observation: Seen) -> Tensor:
        return torch.tanh(self.numbers(observation))


def actions(out: Any, n: int, action: Actions) -> list[Tensor]:
    """The actions in an actor's output for n observations. Raises UserError for an output of another form, or outside of
    [-1, 1]."""
    shape = (n, action.parameters // 2)
    if not isinstance(out, Tensor) or tuple(out.shape) != shape or not out.is_floating_point():
        wanted = f"actions {list(shape)} of floats: an actor of td3"
        raise UserError(f"policy: forward gave {form_of(out)} for {n} observations; expected {wanted}")
    if (out.detach().abs() > 1).any():
        raise UserError("policy: forward gave an action outside [-1, 1], which td3 scales to the bounds; end with torch.tanh")
    return [out]
