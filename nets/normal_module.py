"""The running statistics of a module, and the scaling by them: the torch side of nets/normal.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shoal.nets.moments import PARTS, Moments
from shoal.nets.normal import EPSILON, PAID, PART, SEEN
from shoal.protocol.errors import UserError


class Normal(nn.Module):
    """Statistics as float64 buffers NAMEcount [], NAMEmean and NAMEm2 [*shape], for each name and shape in `shapes`; at first
    of no number, which scales nothing. clip: largest absolute value of a scaled observation."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], clip: float) -> None:
        super().__init__()
        self.shapes, self.clip = dict(shapes), clip
        for name, shape in shapes.items():
            for part in PARTS:
                self.register_buffer(f"{name}{part}", torch.zeros(() if part == "count" else shape, dtype=torch.float64))

    def forward(self, observation: Tensor) -> Tensor:
        """Observations [..., *obs], scaled and clipped, float32; as they are if they are not to be scaled."""
        if SEEN not in self.shapes:
            return observation
        seen = observation.to(torch.float32)
        return ((seen - self._buffers[f"{SEEN}mean"].float()) * self._scale(SEEN)).clamp(-self.clip, self.clip)  # type: ignore[union-attr]

    def reward(self, reward: Tensor, clip: float) -> Tensor:
        """Rewards divided by the standard deviation of discounted returns, at most `clip`; as they are if they are not to be
        scaled."""
        return (reward * self._scale(PAID)).clamp(-clip, clip) if PAID in self.shapes else reward

    def take(self, name: str, moments: list[Moments]) -> None:
        """Merge more moments into the statistics of this name, in this order."""
        buffers: dict[str, Any] = {part: self._buffers[f"{name}{part}"] for part in PARTS}
        whole = Moments(*(buffers[part].cpu().numpy().copy() for part in PARTS))
        for one in moments:
            whole = whole.merged(one)
        for part in PARTS:
            buffers[part].copy_(torch.from_numpy(np.asarray(getattr(whole, part))))

    def _scale(self, name: str) -> Tensor:
        count, m2 = self._buffers[f"{name}count"], self._buffers[f"{name}m2"]
        assert count is not None
        assert m2 is not None
        variance = torch.where(count > 0, m2 / count.clamp(min=1.0), 1.0)
        return (1.0 / torch.sqrt(variance + EPSILON)).float()


def attached(module: nn.Module, shapes: Mapping[str, tuple[int, ...]], clip: float) -> nn.Module:
    """The module itself, with statistics as its part `normal`, by which its forward scales the observation. Raises UserError if
    the module has an attribute of that name."""
    if hasattr(module, PART):
        raise UserError(f"policy: it has an attribute {PART!r}, the name that norm_obs and norm_reward need; give it another")
    module.add_module(PART, Normal(shapes, clip))
    module.register_forward_pre_hook(_scaled)
    return module


def detached(module: nn.Module) -> Normal | None:
    """The statistics of a module, whose forward from now on takes observations that are scaled already; None if it has none."""
    for number, hook in list(module._forward_pre_hooks.items()):
        if hook is _scaled:
            del module._forward_pre_hooks[number]
    normal = module._modules.get(PART)
    return normal if isinstance(normal, Normal) else None


def _scaled(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    seen, *rest = given
    normal: Any = module._modules[PART]
    return (normal(seen), *rest)
