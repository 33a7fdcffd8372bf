"""FedNova's client (Wang et al. 2020): local SGD that counts what its steps are worth.

The one idea: the move y - x is a sum of gradients, each times -lr and a number of the normalising vector a_i. That number is
how far the gradient has moved the weights by the end of the task, so it depends only on the steps that follow the gradient, and
all of these numbers come from one recursion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shoal.actors.workers.local_sgd import LocalSGD
from shoal.protocol.beside import joined
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle


@dataclass(eq=False, repr=False)
class FedNovaSGD(LocalSGD):
    """Local SGD with "steps", ||a_i||_1, beside its delta, float32 [1].

    For K steps ||a_i||_1 is K with plain SGD; (K - rho (1 - rho^K) / (1 - rho)) / (1 - rho) with momentum rho; and
    (1 - (1 - lr mu)^K) / (lr mu) with a proximal term (section 4 and appendix of the paper). In general it is the sum of |h_n|
    for n from 1 to K, where h_n is what a gradient has moved after n steps: v <- rho v - lr mu h; h <- h + v, from v = h = 1.
    The paper's vectors have no number below 0. Those of a long proximal term may (lr mu > 1, or less with momentum), and then
    the 1-norm is not the sum.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sgd is None:
            raise UserError("FedNova's normalising vectors are those of SGD with or without momentum; optimizer=sgd")
        self._begin()

    def _begin(self) -> None:
        self.v, self.h, self.s = 1.0, 0.0, 0.0  # the first step moves by the gradient alone

    def _start(self) -> None:
        super()._start()
        self._begin()

    def _step(self, factor: float, t: int) -> None:
        super()._step(factor, t)
        assert self.sgd is not None
        if self.s:
            self.v = self.sgd.momentum * self.v - self.sgd.lr * factor * self.mu * self.h
        self.h += self.v
        self.s += abs(self.h)

    def _delta(self, weights: Bundle) -> Bundle:
        return joined(super()._delta(weights), {"steps": np.array([self.s], np.float32)})
