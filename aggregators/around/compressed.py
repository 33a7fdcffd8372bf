"""An aggregator of contributions that were sent in fewer bytes.

The one idea: each contribution is unpacked into the same bundle and handed on. Packed numbers cannot be summed, so every
client's contribution comes by itself.
"""

from __future__ import annotations

import math
from dataclasses import replace

from shoal.aggregators import Aggregator
from shoal.aggregators.around import Around
from shoal.protocol.compress import Codec, Packed
from shoal.protocol.errors import ProtocolError
from shoal.protocol.exact import squares
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution


class Decompressed(Around):
    """Another aggregator, fed by actors.workers.compressed.Compressed with the same codec.

    norm: largest L2 norm of an unpacked contribution, of its float32 and float64 entries; 0: any finite norm. The packed
    numbers do not show it.
    Memory: one bundle beside the aggregator's own.
    """

    linear = False

    def __init__(self, aggregator: Aggregator, codec: Codec, *, norm: float = 0.0) -> None:
        super().__init__(aggregator)
        self.norm = norm
        self.packed = Packed(codec, aggregator.weights().layout)
        self.unpacked = Bundle.zeros(self.packed.dense)

    def fold(self, contribution: Contribution) -> None:
        """Raises ProtocolError, with nothing folded in, for malformed arrays and a norm above `norm`; and as the other
        aggregator does."""
        if contribution.summed:
            raise ProtocolError("compressed contributions come one by one; this one is a sum")
        self.packed.unpack(contribution.bundle, self.unpacked)
        norm = math.sqrt(squares(self.unpacked))
        if self.norm and norm > self.norm:
            raise ProtocolError(f"norm {norm:g} is above the bound of {self.norm:g}")
        self.aggregator.fold(replace(contribution, work=replace(contribution.work, bundle=self.unpacked), norm=norm))
