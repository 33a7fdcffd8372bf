"""Memory for weights: what others still look at is not written, and what nobody looks at is written again.

The one idea: a look at a buffer is an array of its own over the same bytes. Whatever is made of it (a view, a tensor, a message
under way) keeps it alive, and when it goes, the buffer is free. So weights are handed out without a copy, and memory that is
in use already is not asked for anew: the first touch of a fresh page costs more than writing it does.
"""

from __future__ import annotations

import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

from shoal.nets.flat import as_tensor
from shoal.protocol.layout import Bundle, Layout

KEPT = 1  # free buffers: one is written while another is looked at


class Buffers:
    """Buffers for bundles of one layout, in the host's memory. made: how many there were, ever.

    pinned: page-locked, for copies from a device. Looks may go on any thread.
    """

    def __init__(self, layout: Layout, pinned: bool = False) -> None:
        self.layout, self.pinned = layout, pinned
        self.made = 0
        self._free: deque[Tensor] = deque()

    def take(self) -> Tensor:
        """uint8 [layout.nbytes] that nobody looks at: what was in it last, or zeros."""
        try:
            return self._free.pop()
        except IndexError:
            self.made += 1
            return self._new()

    def show(self, raw: Tensor) -> Bundle:
        """A read-only look at a buffer that was taken; it is free once nobody holds the look or anything made of it."""
        look = np.frombuffer(raw.numpy().data.toreadonly(), np.uint8)
        gone = weakref.finalize(look, self._give_back, self._free, raw)
        gone.atexit = False
        return Bundle(self.layout, look)

    @staticmethod
    def _give_back(free: deque[Tensor], raw: Tensor) -> None:
        if len(free) < KEPT:
            free.append(raw)

    def _new(self) -> Tensor:
        if self.pinned:
            return torch.zeros(self.layout.nbytes, dtype=torch.uint8, pin_memory=True)
        return torch.from_numpy(Bundle.zeros(self.layout).data)  # numpy asks for large pages where they are to be had


class Weights:
    """An aggregator's weights on its device, and what others see of them. raw: uint8 [layout.nbytes] on the device.

    On a CPU others look at the very same memory, and the next weights are written elsewhere while they do. Those of another
    device are written in place, and others see a copy.
    """

    def __init__(self, start: Bundle, device: torch.device) -> None:
        self.layout, self.here = start.layout, device.type == "cpu"
        self.buffers = Buffers(start.layout, pinned=device.type == "cuda")
        self.raw = torch.empty(0) if self.here else torch.zeros(self.layout.nbytes, dtype=torch.uint8, device=device)
        self._look: Bundle | None = None
        self.load(start)

    def bundle(self) -> Bundle:
        """Read-only; it stays as it is for as long as anybody holds it."""
        if self._look is None:
            host = self.buffers.take()
            host.copy_(self.raw)
            self._look = self.buffers.show(host)
        return self._look

    def spare(self) -> Tensor:
        """Where the next weights may be written: where these are, unless somebody on this CPU looks at them."""
        self._look = None
        return self.buffers.take() if self.here else self.raw

    def become(self, raw: Tensor) -> None:
        """The weights are these from now on."""
        self.raw = raw
        self._look = self.buffers.show(raw) if self.here else None

    def load(self, weights: Bundle) -> None:
        """One copy. What lies between segments stays zero."""
        into, given = self.spare(), as_tensor(weights.data)
        for first, last in self.layout.segments.values():
            into[first:last].copy_(given[first:last])
        self.become(into)
