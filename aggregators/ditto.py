"""Ditto (Li et al. 2021, "Ditto: Fair and Robust Federated Learning Through Personalization", algorithm 1).

The one idea: the global weights are FedAvg's, and each client has a whole model of its own, drawn to them.
"""

from __future__ import annotations

from typing import Any

from shoal.aggregators.remembered import Floats
from shoal.aggregators.stateful import StatefulServer
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Moved, Task


class DittoServer(StatefulServer):
    """FedAvg's server, which keeps v_k, client k's own model: "personal" beside each delta, float32 [entries].

    entries: number of float32 entries that are not frozen. A task's brief, of evaluations too, is {"personal": v_k}; None for a
    client that has none yet.
    """

    def __init__(self, weights: Bundle, trainable: int | None = None, *, entries: int, **options: Any) -> None:
        super().__init__(weights, trainable, beside={"personal": entries}, entries=entries, **options)

    def brief(self, task: Task) -> Bundle | None:
        row = self.row(task)
        return None if row is None else Bundle.pack({"personal": row})

    def took(self, client: int, delta: Bundle, arrays: dict[str, Floats], weight: float) -> None:
        self.remembered.put(client, arrays["personal"])

    def step(self) -> Moved:
        moved = super().step()
        self.remembered.step(self.steps)
        return moved
