"""Memory for weights: a buffer is written again only if nobody looks at it.

The one idea: a look at a buffer is an array of its own over the same bytes. A view, a tensor or a message under way that is
made of the look keeps the look alive; when the look goes, the buffer is free. So weights are handed out without a copy, and
buffers are reused: the first touch of a fresh page costs more than writing the page does.
"""

from __future__ import annotations

import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

from shoal.nets.flat import as_tensor
from shoal.protocol.layout import Bundle, Layout

KEPT = 1  # free buffers that are kept: one is written while another is looked at


class Buffers:
    """Buffers for bundles of one layout, in the host's memory. made: number of buffers allocated so far.

    pinned: True makes page-locked buffers, for copies from a device. A look may go on any thread.
    """

    def __init__(self, layout: Layout, pinned: bool = False) -> None:
        self.layout, self.pinned = layout, pinned
        self.made = 0
        self._free: deque[Tensor] = deque()

    def take(self) -> Tensor:
        """A buffer that nobody looks at, uint8 [layout.nbytes]. A reused buffer holds its last content, a new one zeros."""
        try:
            return self._free.pop()
        except IndexError:
            self.made += 1
        if self.pinned:
            return torch.zeros(self.layout.nbytes, dtype=torch.uint8, pin_memory=True)
        return torch.from_numpy(Bundle.zeros(self.layout).data)  # numpy asks for large pages where the system has them

    def show(self, raw: Tensor) -> Bundle:
        """A read-only look at a taken buffer. The buffer is free once nobody holds the look or anything made of it."""
        look = np.frombuffer(raw.numpy().data.toreadonly(), np.uint8)
        gone = weakref.finalize(look, self._give_back, self._free, raw)
        gone.atexit = False
        return Bundle(self.layout, look)

    @staticmethod
    def _give_back(free: deque[Tensor], raw: Tensor) -> None:
        if len(free) < KEPT:
            free.append(raw)


class Weights:
    """An aggregator's weights on its device, and the bundle that others see. raw: uint8 [layout.nbytes] on the device.

    On a CPU others look at the same memory; while they do, the next weights are written to another buffer. On any other
    device the weights are written in place, and others see a copy in the host's memory.
    """

    def __init__(self, start: Bundle, device: torch.device) -> None:
        self.layout, self.here = start.layout, device.type == "cpu"
        self.buffers = Buffers(start.layout, pinned=device.type == "cuda")
        self.raw = torch.empty(0) if self.here else torch.zeros(self.layout.nbytes, dtype=torch.uint8, device=device)
        self._look: Bundle | None = None
        self.load(start)

    def bundle(self) -> Bundle:
        """The weights, read-only. The bundle does not change while anybody holds it."""
        if self._look is None:
            host = self.buffers.take()
            host.copy_(self.raw)
            self._look = self.buffers.show(host)
        return self._look

    def spare(self) -> Tensor:
        """The memory for the next weights: that of the current weights, unless somebody on this CPU looks at them."""
        self._look = None
        return self.buffers.take() if self.here else self.raw

    def become(self, raw: Tensor) -> None:
        """Make `raw` the weights from now on."""
        self.raw = raw
        self._look = self.buffers.show(raw) if self.here else None

    def load(self, weights: Bundle) -> None:
        """Take weights in, with one copy. Bytes between segments stay zero."""
        into, given = self.spare(), as_tensor(weights.data)
        for first, last in self.layout.segments.values():
            into[first:last].copy_(given[first:last])
        self.become(into)
