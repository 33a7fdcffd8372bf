"""Gradient descent on a loss: gradient, clip, optimizer, and a learning rate that falls to 0 by the end of the run.

The one idea: with all weights in one vector, the clip is one norm and the optimizer has one parameter, so the optimizer's
whole memory is a handful of flat arrays that a snapshot can hold by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from shoal.nets.flat import FlatModule
from shoal.protocol.layout import Bundle

OPTIMIZERS = ("adam", "rmsprop")


class Descent:
    """One optimizer over a FlatModule's trainable vector.

    lr: first learning rate. It falls linearly to 0 at total_timesteps environment steps; total_timesteps=None: it stays.
    max_grad_norm: largest Euclidean norm of a gradient; a longer gradient is scaled down to it. math.inf: no bound.
    updates, steps: numbers of gradient steps made and of environment steps learned from.
    Raises UserError for a module without trainable parameters, or with a trainable parameter that is not float32.
    """

    def __init__(
        self, flat: FlatModule, *, lr: float, max_grad_norm: float, optimizer: str = "adam", total_timesteps: int | None = None
    ) -> None:
        self.flat, self.lr, self.max_grad_norm, self.total_timesteps = flat.trained(), lr, max_grad_norm, total_timesteps
        self.vector = nn.Parameter(flat.vector[: flat.trainable])
        self.vector.grad = flat.grad
        self.optimizer = _optimizer(optimizer, self.vector, lr)
        self.updates = self.steps = 0

    def anneal(self) -> None:
        """Set the learning rate of the next updates from `steps`, the environment steps learned from so far."""
        left = 1.0 if self.total_timesteps is None else max(0.0, 1.0 - self.steps / self.total_timesteps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * left

    def update(self, loss: Tensor) -> Tensor:
        """Make one gradient step. Returns the gradient's norm before the clip, still on the device."""
        self.flat.grad.zero_()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = self.flat.clip(self.max_grad_norm)
        self.optimizer.step()
        self.updates += 1
        return norm

    def state(self) -> Mapping[str, npt.NDArray[Any]]:
        moments = {f"optimizer/{name}": value.cpu().numpy().copy() for name, value in self.optimizer.state[self.vector].items()}
        return {**moments, "counters": torch.tensor([self.updates, self.steps]).numpy()}

    def load(self, weights: Bundle, state: Mapping[str, npt.NDArray[Any]]) -> None:
        self.flat.read(weights)
        self.updates, self.steps = (int(n) for n in state["counters"])
        self.optimizer.state[self.vector] = {
            name.removeprefix("optimizer/"): torch.tensor(value, device=self.flat.device if value.ndim else "cpu")
            for name, value in state.items()
            if name.startswith("optimizer/")
        }


def _optimizer(name: str, vector: nn.Parameter, lr: float) -> torch.optim.Optimizer:
    if name == "adam":
        return torch.optim.Adam([vector], lr=lr, eps=1e-5)
    if name == "rmsprop":
        return torch.optim.RMSprop([vector], lr=lr, alpha=0.99, eps=0.01)
    raise ValueError(f"optimizer={name!r}: must be one of {', '.join(OPTIMIZERS)}")
