"""The squashed Gaussian: SAC's policy in torch (Haarnoja et al. 2018, section 4.2 and appendix C).

The one idea: u is normal, and the action is tanh(u), so the density of the action is that of u, divided by the slope of tanh
at u. The logarithm of the slope is computed from u: of the action alone it could not be told where tanh is flat.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from shoal.envs.spaces import Actions, Array, Floats
from shoal.nets.acting import OfModule
from shoal.nets.continuous import LOG_STD, Bounds
from shoal.nets.fitting import form_of
from shoal.nets.flat import FlatModule
from shoal.nets.forward import Forward, Found
from shoal.nets.perceptrons import BoxActor
from shoal.nets.policies import Seen
from shoal.protocol.errors import UserError


class SquashedActor(BoxActor):
    """The policy of SAC: observations -> (mean, log_std) of u, both [N, A]."""

    each = 2

    def forward(self, observation: Seen) -> tuple[Tensor, Tensor]:
        mean, log_std = self.numbers(observation).chunk(2, dim=-1)
        return mean, log_std


def squashed(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The pair (action [..., A], log density [...] of the action) of u = mean + std * noise; noise: standard normal [..., A].

    Both are differentiable in mean and log_std (equation 11's reparametrisation). log_std is kept between the bounds LOG_STD.
    The density is of actions in [-1, 1].
    """
    log_std = log_std.clamp(*LOG_STD)
    u = mean + log_std.exp() * noise
    normal = -(0.5 * noise * noise + log_std + 0.5 * math.log(2 * math.pi))
    return torch.tanh(u), (normal - log_slope(u)).sum(-1)


def log_slope(u: Tensor) -> Tensor:
    """log(1 - tanh(u) ** 2), in a form that is exact for large |u| too."""
    return 2.0 * (math.log(2.0) - u - softplus(-2.0 * u))


def inward(bounds: Bounds, device: torch.device | str) -> Callable[[Tensor], Tensor]:
    """The function from the environment's actions [N, A] to a network's, which lie in [-1, 1]."""
    middle, half = (torch.tensor(each, device=device) for each in (bounds.middle, bounds.half))
    return lambda action: (action - middle) / half


def mean_and_deviation(out: Any, n: int, action: Actions) -> list[Tensor]:
    """The tensors (mean, log_std) of an actor's output for n observations. Raises UserError for an output of another form."""
    size = action.parameters // 2
    good = isinstance(out, tuple | list) and len(out) == 2
    if not good or not all(isinstance(x, Tensor) and tuple(x.shape) == (n, size) and x.is_floating_point() for x in out):
        wanted = f"(mean [{n}, {size}], log_std [{n}, {size}]), both of floats: an actor of sac"
        raise UserError(f"policy: forward gave {form_of(out)} for {n} observations; expected {wanted}")
    return list(out)


class TorchNumbers(OfModule):
    """A user's actor of SAC or TD3 as an actor process runs it: the tensors that it returns, side by side."""

    def __init__(self, module: nn.Module) -> None:
        self.forward = Forward(FlatModule(module), _read)

    def parameters(self, observation: Array) -> Floats:
        return self.forward(observation, {})[0]


def _read(outputs: Tensor | tuple[Tensor, ...]) -> Found:
    return (outputs if isinstance(outputs, Tensor) else torch.cat(outputs, dim=-1)), {}
