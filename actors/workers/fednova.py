"""FedNova's client (Wang et al. 2020): local SGD that counts what its steps are worth.

The one idea: the move y - x is a sum of gradients, each times lr and a number of the normalising vector a_i; their sum,
||a_i||_1, follows the same recursion as the weights do.
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
    (1 - (1 - lr mu)^K) / (lr mu) with a proximal term (section 4 and appendix of the paper). Both at once follow from the
    recursion v <- rho v + 1 - lr mu s; s <- s + v, of which these are the closed forms.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sgd is None:
            raise UserError("FedNova's normalising vectors are those of SGD with or without momentum; optimizer=sgd")
        self.v = self.s = 0.0

    def _start(self) -> None:
        super()._start()
        self.v = self.s = 0.0

    def _step(self, factor: float, t: int) -> None:
        super()._step(factor, t)
        assert self.sgd is not None
        self.v = self.sgd.momentum * self.v + 1.0 - self.sgd.lr * factor * self.mu * self.s
        self.s += self.v

    def _delta(self, weights: Bundle) -> Bundle:
        return joined(super()._delta(weights), {"steps": np.array([self.s], np.float32)})
