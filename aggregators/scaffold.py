"""SCAFFOLD (Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", algorithm 1).

The one idea: c_i estimates a client's gradient and c the mean gradient of all clients, so a step along g_i(y) - c_i + c drifts
no more towards the client's own optimum.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shoal.aggregators import State
from shoal.aggregators.remembered import Floats
from shoal.aggregators.stateful import StatefulServer
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Moved, Task


class ScaffoldServer(StatefulServer):
    """x <- x + lr / |S| sum over S of (y_i - x);  c <- c + 1 / N sum over S of (c_i+ - c_i)  (algorithm 1, lines 16 and 17).

    A client is told c - c_i, and sends y_i - x and c_i+ = c_i - c + (x - y_i) / (K lr_client), the paper's option II. c and
    each c_i are float32 [trainable], and begin with zeros. c_i changes in the step that the client's delta goes into.
    """

    def __init__(self, weights: Bundle, trainable: int, **options: Any) -> None:
        super().__init__(weights, trainable, beside={"control": trainable}, **options)
        self.c = np.zeros(trainable, np.float32)

    def brief(self, task: Task) -> Bundle | None:
        """{"correction": c - c_i}, float32 [trainable]; None for an evaluation."""
        if not task.counts:
            return None
        c_i = self.row(task)
        return Bundle.pack({"correction": self.c if c_i is None else self.c - c_i})

    def took(self, client: int, delta: Bundle, arrays: dict[str, Floats], weight: float) -> None:
        self.remembered.put(client, arrays["control"])

    def step(self) -> Moved:
        """Metrics: those of FedAvgServer, and control_norm, the L2 norm of c."""
        change = np.zeros(self.trainable)
        for client, after in sorted(self.remembered.came.items()):  # by client, so that no order of arrival shows
            change += after
            if (before := self.remembered.of(client)) is not None:
                change -= before
        moved = super().step()
        self.c = (self.c + change / self.clients).astype(np.float32)
        return Moved({**moved.metrics, "control_norm": float(np.linalg.norm(self.c.astype(np.float64)))})

    def state(self) -> State:
        return {**super().state(), "c": self.c}

    def load(self, weights: Bundle, state: State) -> None:
        if state["c"].shape != self.c.shape:
            raise ValueError(f"saved state: 'c' must have shape {list(self.c.shape)}, found {list(state['c'].shape)}")
        super().load(weights, state)
        self.c = state["c"].astype(np.float32)
