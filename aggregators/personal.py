"""The server of methods whose clients keep some layers to themselves: FedPer, FedRep, FedBN.

The one idea: in a contribution the entries of personal layers are the client's values, not differences. They become the
client's row and count 0 in the mean. The server's own entries there stay those of version 0, with which a client begins.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.aggregators.remembered import Floats
from shoal.aggregators.stateful import PersonalRows
from shoal.protocol.errors import ProtocolError
from shoal.protocol.layout import Bundle


class PersonalServer(PersonalRows):
    """FedAvg's server of the shared entries. places: of the personal entries, int64 [k], in the float32 vector; a client's row
    is float32 [k]."""

    def __init__(self, weights: Bundle, trainable: int | None = None, *, places: npt.NDArray[np.int64], **options: Any) -> None:
        super().__init__(weights, trainable, beside={}, entries=len(places), **options)
        self.places = places

    def prepared(self, delta: Bundle, weight: float, arrays: dict[str, Floats]) -> tuple[Bundle, float]:
        own = delta.vector()[self.places]
        if not np.isfinite(own).all():
            raise ProtocolError("a personal layer holds NaN or an infinity")
        arrays["personal"] = own
        delta.vector()[self.places] = 0.0
        return delta, weight
