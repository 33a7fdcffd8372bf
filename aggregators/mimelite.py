"""MimeLite (Karimireddy et al. 2021, "Breaking the centralized barrier for cross-device federated learning", algorithm 1).

The one idea: clients make the steps of a centralised optimizer whose statistics stay as the server has them through all local
steps; the server alone moves the statistics, by full-batch gradients of the clients at its own weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from shoal.aggregators import State
from shoal.aggregators.remembered import Floats
from shoal.aggregators.stateful import Split
from shoal.nets.mime import Statistics
from shoal.protocol.errors import ProtocolError
from shoal.protocol.exact import PartialSum
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.work import Moved, Task


class MimeLiteServer(Split):
    """x <- x + lr mean(y_i - x);  s <- V(mean of grad f_i(x), s)  (algorithm 1, lines 15 and 16).

    A task's brief is s, the statistics' arrays by name, float32 [trainable]. A contribution has "gradient", grad f_i(x) over
    all of the client's examples, beside its delta. Both means have the same weights and, with deterministic=True, exact sums.
    """

    def __init__(self, weights: Bundle, trainable: int, *, base: Statistics, **options: Any) -> None:
        super().__init__(weights, trainable, beside={"gradient": trainable}, **options)
        self.base = base
        self.s = {name: np.zeros(trainable, np.float32) for name in base.names}
        self.gradients = PartialSum(Layout.of({"gradient": ("f4", (trainable,))}), bool(options.get("deterministic", True)))
        self.gradients.gauge.shares = int(options.get("shares", 1))

    def brief(self, task: Task) -> Bundle | None:
        """The statistics s; None for an evaluation."""
        return Bundle.pack(self.s) if task.counts else None

    def prepared(self, delta: Bundle, weight: float, arrays: dict[str, Floats]) -> tuple[Bundle, float]:
        gauge = self.gradients.gauge  # what is within its share of the sum's range now can be added whatever comes
        if (reach := weight * float(np.abs(arrays["gradient"]).max(initial=0.0))) > (most := gauge.limit / gauge.shares):
            raise ProtocolError(f"a weighted full-batch gradient reaches {reach:.3g}, above {most:.3g}: scale the loss down")
        return delta, weight

    def took(self, client: int, delta: Bundle, arrays: dict[str, Floats], weight: float) -> None:
        self.gradients.add(Bundle.pack({"gradient": arrays["gradient"]}), weight)

    def step(self) -> Moved:
        """Metrics: those of FedAvgServer, and gradient_norm, the L2 norm of the mean full-batch gradient."""
        mean = self.gradients.totals["f4"].astype(np.float64) * (self.unit / self.gradients.weight)
        moved = super().step()
        statistics = (torch.from_numpy(each).double() for each in self.s.values())
        found = self.base.track(torch.from_numpy(mean), self.steps, *statistics)
        self.s = {name: each.numpy().astype(np.float32) for name, each in zip(self.s, found, strict=True)}
        return Moved({**moved.metrics, "gradient_norm": float(np.linalg.norm(mean))})

    def _clear(self) -> None:
        super()._clear()
        self.gradients.clear()

    def state(self) -> State:
        return {**super().state(), **{f"mime/{name}": each for name, each in self.s.items()}}

    def load(self, weights: Bundle, state: State) -> None:
        for name, each in self.s.items():
            if state[f"mime/{name}"].shape != each.shape:
                raise ValueError(f"saved state: 'mime/{name}' must have shape {list(each.shape)}")
        super().load(weights, state)
        self.s = {name: state[f"mime/{name}"].astype(np.float32) for name in self.s}
