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
    """An aggregator around another, fed by actors.workers.compressed.Compressed with the same codec.

    norm: largest L2 norm of an unpacked contribution, of its float32 and float64 entries; 0: any finite norm. The packed
    numbers do not show it.
    Memory: one bundle for each layout that contributions may have, beside the aggregator's own.
    """

    linear = False

    def __init__(self, aggregator: Aggregator, codec: Codec, *, norm: float = 0.0) -> None:
        super().__init__(aggregator)
        self.norm = norm
        layout = aggregator.weights().layout
        self.whole = Packed(codec, layout)
        ways = (Packed(codec, layout.moving), self.whole) if layout.still else (self.whole,)
        self.ways = {packed.layout.digest: (packed, Bundle.zeros(packed.dense)) for packed in ways}

    def fold(self, contribution: Contribution) -> None:
        """Raises ProtocolError, with nothing folded in, for malformed arrays and a norm above `norm`; and as the other
        aggregator does."""
        if contribution.summed:
            raise ProtocolError("compressed contributions come one by one; this one is a sum")
        packed, unpacked = self.ways.get(contribution.bundle.layout.digest, self.ways[self.whole.layout.digest])
        packed.unpack(contribution.bundle, unpacked)
        norm = math.sqrt(squares(unpacked))
        if self.norm and norm > self.norm:
            raise ProtocolError(f"norm {norm:g} is above the bound of {self.norm:g}")
        self.aggregator.fold(replace(contribution, work=replace(contribution.work, bundle=unpacked), norm=norm))
