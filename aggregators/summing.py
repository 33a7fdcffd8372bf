"""Sums of contributions on a device, in torch, with the same bits as protocol/exact.py makes with numpy.

The one idea: the exact form is a few elementwise operations with one right answer each (a float32 product, rounding to a
whole number, adding integers), so a GPU and a CPU agree. Checks read the host's bytes, so they never wait for the device.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from shoal.aggregators.buffers import Weights
from shoal.nets.adding import TorchAdder
from shoal.nets.flat import as_tensor, segment, views
from shoal.protocol.exact import PLAIN_TOTALS, Gauge, PartialSum, Sum, averaged
from shoal.protocol.grid import GRID
from shoal.protocol.layout import Bundle, Layout

BLOCKS: Mapping[str, int] = {"cpu": 2**17, "cuda": 2**22}
"""Device type -> elements worked on at once: what a CPU's caches hold, enough to fill a GPU. No temporary is model-sized."""


class DeviceSum:
    """A sum as PartialSum, with its totals on a device. totals: dtype -> flat tensor: int64 if exact, else floats."""

    def __init__(self, layout: Layout, device: torch.device, exact: bool = True) -> None:
        self.gauge = Gauge(layout, exact)
        self._raw = torch.zeros(self.gauge.sums.nbytes, dtype=torch.uint8, device=device)
        totals = views(self._raw, self.gauge.sums)
        self.totals = {dtype: totals[f"sum/{dtype}"] for dtype in self.gauge.dtypes}
        self._block = BLOCKS.get(device.type, BLOCKS["cuda"])
        self._road = Road(max(layout.nbytes, self.gauge.sums.nbytes), device)

    @property
    def weight(self) -> float:
        return self.gauge.weight

    def add(self, bundle: Bundle, weight: float, norm: float | None = None) -> None:
        """Add a client's bundle, in one copy to the device that starts here. Raises ProtocolError as PartialSum.add does."""
        weight, _ = self.gauge.term(bundle, weight, norm, self._extent)
        raw = self._road.bring(bundle)
        add = self._exact if self.gauge.exact else self._plain
        for dtype, total in self.totals.items():
            x = segment(raw, bundle.layout, dtype)
            add(total[: len(x)], x, weight)

    def merge(self, bundle: Bundle, weight: float, clients: int = 1) -> None:
        """Add a partial sum over so many clients: its bundle and the sum of its weights."""
        self.gauge.partial(bundle, weight, self._extent, clients)
        arrays = views(self._road.bring(bundle), bundle.layout)
        for dtype, total in self.totals.items():
            if (part := arrays.get(f"sum/{dtype}")) is not None:
                total[: len(part)].add_(part)

    def clear(self) -> None:
        self.gauge.clear()
        self._raw.zero_()

    def _exact(self, total: Tensor, x: Tensor, weight: float) -> None:
        """Add as grid.Adder.exact does, with the same bits in every term."""
        for first in range(0, len(x), self._block):
            part = as_floats(x[first : first + self._block])
            total[first : first + self._block].add_(torch.mul(part, weight / GRID).round_().to(torch.int64))

    def _plain(self, total: Tensor, x: Tensor, weight: float) -> None:
        total.add_(x if x.dtype == total.dtype else as_floats(x), alpha=weight)

    def _extent(self) -> float:
        """The largest |total|. This waits for the device, so the gauge asks for it only if the sum may be near its limit."""
        tops = [float(total.double().abs().max()) for total in self.totals.values() if len(total)]
        return max(tops, default=0.0) * (GRID if self.gauge.exact else 1.0)


class Road:
    """The way of bytes from the host to a device: two page-locked buffers in turn, and a stream for their copies.

    While one buffer is copied to the device, the next contribution is written to the other, piece by piece as it lies in
    memory. On a CPU that write is the only copy.
    """

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self.device = device
        self.turn = 0
        self.cuda = device.type == "cuda"
        self.host = [torch.empty(nbytes, dtype=torch.uint8, pin_memory=self.cuda) for _ in range(2)]
        if not self.cuda:
            return
        self.there = [torch.empty(nbytes, dtype=torch.uint8, device=device) for _ in range(2)]
        self.left = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self.used = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self.copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def bring(self, bundle: Bundle) -> Tensor:
        """The bundle's bytes on the device, uint8, valid until the next call but one. The bundle may change once this returns.

        The caller queues every read of the tensor on the device's current stream before the next call.
        """
        before, self.turn = self.turn, 1 - self.turn
        host = self.host[self.turn][: bundle.layout.nbytes]
        if not self.cuda:
            _write(bundle, host)
            return host
        current = torch.cuda.current_stream(self.device)
        self.used[before].record(current)  # every read of the last tensor is queued by now
        there = self.there[self.turn][: bundle.layout.nbytes]
        self.left[self.turn].synchronize()  # waits for this buffer's last copy, two calls ago
        _write(bundle, host)
        self.copies.wait_event(self.used[self.turn])
        with torch.cuda.stream(self.copies):
            there.copy_(host, non_blocking=True)
            self.left[self.turn].record(self.copies)
        current.wait_event(self.left[self.turn])
        return there


def _write(bundle: Bundle, host: Tensor) -> None:
    at = 0
    for piece in bundle.pieces():
        host[at : at + piece.nbytes].copy_(as_tensor(piece))
        at += piece.nbytes


class Turning(Sum):
    """A plain sum on the host that becomes the next weights in place. Float32 and float64 totals lie in a buffer of the
    weights' own layout, taken for the first contribution after a step; the other totals lie beside it."""

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights.layout, False, TorchAdder())
        self._buffers = weights.buffers
        self._raw: Tensor | None = None
        sizes = averaged(weights.layout)
        others = {dtype: (PLAIN_TOTALS[dtype], (sizes[dtype],)) for dtype in self.gauge.converted}
        self._beside = dict(Bundle.zeros(Layout.of(others)).items())

    def add(self, bundle: Bundle, weight: float, norm: float | None = None) -> None:
        self._begin()
        super().add(bundle, weight, norm)

    def merge(self, bundle: Bundle, weight: float, clients: int = 1) -> None:
        self._begin()
        super().merge(bundle, weight, clients)

    def turn(self) -> Tensor:
        """The buffer, for the next weights. The totals in it are valid until the sum is cleared."""
        raw, self._raw = self._begin(), None
        return raw

    def clear(self) -> None:
        if self._raw is not None:
            super().clear()
        self.gauge.clear()

    def _begin(self) -> Tensor:
        if self._raw is None:
            self._raw = self._buffers.take()
            within = Bundle(self.gauge.layout, self._raw.numpy())
            self._totals = {**{dtype: within.vector(dtype) for dtype in self.gauge.dtypes}, **self._beside}
            super().clear()
        return self._raw


def make_sum(weights: Weights, device: torch.device, exact: bool) -> PartialSum | Turning | DeviceSum:
    if device.type != "cpu":
        return DeviceSum(weights.layout, device, exact)
    return PartialSum(weights.layout) if exact else Turning(weights)


def as_floats(x: Tensor) -> Tensor:
    """The entries as float32 if they are float32 or narrower floats, else as float64: as protocol.exact.floats."""
    return x.float() if x.dtype in (torch.float32, torch.float16, torch.bfloat16) else x.double()
