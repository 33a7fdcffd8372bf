"""SCAFFOLD's client (Karimireddy et al. 2020, algorithm 1, lines 7 to 14), with the control variates of option II.

The one idea: SGD whose gradient is corrected by c - c_i, which comes as the task's brief; the new c_i goes up beside the delta.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.actors.workers.local_sgd import LocalSGD
from shoal.nets.flat import as_tensor
from shoal.protocol.beside import joined
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Work


@dataclass(eq=False, repr=False)
class ScaffoldSGD(LocalSGD):
    """y <- y - lr (g(y) - c_i + c);  c_i+ = c_i - c + (x - y) / (K lr), for K steps.

    brief: {"correction": c - c_i}, float32 [trainable]; None: zeros. A training task returns the delta y - x with "control",
    which is c_i+, beside it (protocol/beside.py). clip_grad_norm bounds g(y), before the correction. weight_decay is part of g.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sgd is None or self.sgd.momentum:
            raise UserError("SCAFFOLD: c_i+ is a mean of gradients if the clients make steps of plain SGD; optimizer=sgd")
        self.correction = torch.zeros_like(self.w)
        self.path = 0.0  # K lr, the sum of the steps' learning rates

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        self.path = 0.0
        if brief is None:
            self.correction.zero_()
        else:
            self.correction.copy_(as_tensor(brief["correction"]))
        return super().run(weights, client, task)

    def _turn(self, gradient: Tensor) -> None:
        gradient.add_(self.correction)

    def _step(self, factor: float, t: int) -> None:
        super()._step(factor, t)
        assert self.sgd is not None
        self.path = t * self.sgd.lr * factor

    def _delta(self, weights: Bundle) -> Bundle:
        delta = super()._delta(weights)
        if not self.path:
            raise UserError("SCAFFOLD divides by the learning rate, and lr_schedule gave 0: give factors above 0")
        moved = delta.vector()[: self.w.numel()]
        return joined(delta, {"control": moved / -self.path - self.correction.cpu().numpy()})
