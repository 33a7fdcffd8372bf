"""Ditto (Li et al. 2021, "Ditto: Fair and Robust Federated Learning Through Personalization", algorithm 1).

The one idea: the global weights are FedAvg's, and each client has a whole model of its own, drawn to them.
"""

from __future__ import annotations

from typing import Any

from shoal.aggregators.stateful import PersonalRows
from shoal.protocol.layout import Bundle


class DittoServer(PersonalRows):
    """FedAvg's server, which keeps v_k, client k's own model: "personal" beside each delta, float32 [entries].

    entries: number of float32 entries that are not frozen.
    """

    def __init__(self, weights: Bundle, trainable: int | None = None, *, entries: int, **options: Any) -> None:
        super().__init__(weights, trainable, beside={"personal": entries}, entries=entries, **options)
