"""FedDyn's client (Acar et al. 2021, algorithm 1): SGD on its loss with a linear and a quadratic term.

The one idea: the quadratic term is FedProx's, with alpha for mu; the linear one takes the brief's g_k off each gradient.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from shoal.actors.workers.local_sgd import LocalSGD
from shoal.nets.flat import as_tensor
from shoal.protocol.errors import within
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Work


@dataclass(eq=False, repr=False)
class FedDynSGD(LocalSGD):
    """Steps down L_k(theta) - <g_k, theta> + alpha / 2 ||theta - theta_server||^2.

    alpha_coef: alpha. brief: {"gradient": g_k}, float32 [trainable]; None: zeros. clip_grad_norm bounds the gradient of the
    loss with the quadratic term, before g_k is taken off. optimizer: any, because the terms are part of the loss.
    """

    _: KW_ONLY
    alpha_coef: float = 0.01

    def __post_init__(self) -> None:
        within("alpha_coef", self.alpha_coef, above=0.0)
        self.mu = self.alpha_coef
        super().__post_init__()
        self.g = torch.zeros_like(self.w)

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        if brief is None:
            self.g.zero_()
        else:
            self.g.copy_(as_tensor(brief["gradient"]))
        return super().run(weights, client, task)

    def _turn(self, gradient: Tensor) -> None:
        gradient.sub_(self.g)
