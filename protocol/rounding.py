"""Codecs that round every entry: halves, and whole numbers in units of a scale.

The one idea: a scale is rounded up, so that an entry is never more units of its scale than the whole numbers reach: nothing
is clipped, and the error is within the codec's definition for the smallest floats and the largest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.exact import floats
from shoal.protocol.grid import BLOCK
from shoal.protocol.layout import Bundle

Vector: TypeAlias = npt.NDArray[np.float32]
Arrays: TypeAlias = Mapping[str, tuple[str, tuple[int, ...]]]
"""name -> (dtype, shape), as Layout.of takes them."""


@dataclass(frozen=True, slots=True)
class Float16:
    """Rounding of each entry to the nearest float16. Entries below 2**-14 lose digits: for small deltas use bfloat16, int8 or
    int4."""

    contracts: ClassVar[bool] = True

    def arrays(self, n: int) -> Arrays:
        return {"values": ("f2", (n,))}

    def encode(self, x: Vector, rng: np.random.Generator, out: Bundle) -> None:
        with np.errstate(over="ignore", under="ignore"):
            out["values"][...] = x
        if not np.isfinite(out["values"]).all():
            raise ProtocolError(f"an entry of {np.abs(x).max():g} is beyond float16, which ends at 65504; use bfloat16")

    def decode(self, sent: Bundle, x: Vector) -> None:
        x[...] = sent["values"]


@dataclass(frozen=True, slots=True)
class BFloat16:
    """Rounding of each entry to the nearest bfloat16 (ties to even): the upper half of a float32."""

    contracts: ClassVar[bool] = True

    def arrays(self, n: int) -> Arrays:
        return {"values": ("bf16", (n,))}

    def encode(self, x: Vector, rng: np.random.Generator, out: Bundle) -> None:
        bits = x.view(np.uint32)
        out["values"][...] = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
        if not np.isfinite(floats(out["values"], "bf16")).all():
            raise ProtocolError(f"an entry of {np.abs(x).max():g} is beyond bfloat16, which ends at 3.39e38")

    def decode(self, sent: Bundle, x: Vector) -> None:
        x[...] = floats(sent["values"], "bf16")


@dataclass(frozen=True, slots=True)
class Blocks:
    """Whole numbers of `bits` (8 or 4) in units of a scale; `block` entries have one scale, their largest |x| / 127, or / 7.

    stochastic: True rounds up or down at random, so that the mean is x (Alistarh et al. 2017, QSGD); False to the nearest.
    """

    bits: int = 8
    block: int = 256
    stochastic: bool = True

    def __post_init__(self) -> None:
        check(self.bits in (4, 8), "bits", self.bits, "4 or 8")
        check(self.block >= 1, "block", self.block, "at least 1")

    @property
    def contracts(self) -> bool:
        return not self.stochastic  # the nearest is never farther off than 0 is, and a block's largest entry is met

    @property
    def top(self) -> int:
        return 127 if self.bits == 8 else 7

    def arrays(self, n: int) -> Arrays:
        values = ("i1", (n,)) if self.bits == 8 else ("u1", (-(-n // 2),))
        return {"values": values, "scales": ("f4", (-(-n // self.block),))}

    def encode(self, x: Vector, rng: np.random.Generator, out: Bundle) -> None:
        whole = out["values"] if self.bits == 8 else np.empty(x.size, np.int8)
        for part, blocks in self._parts(x.size):
            out["scales"][blocks] = scales = _scales(x[part], self.block, self.top)
            steps = x[part] / self._spread(np.where(scales > 0, scales, 1), part)
            whole[part] = _up_or_down(steps, rng) if self.stochastic else np.rint(steps)
        if self.bits == 4:
            out["values"][...] = _paired(whole)

    def decode(self, sent: Bundle, x: Vector) -> None:
        scales = sent["scales"]
        if not (np.isfinite(scales).all() and (scales >= 0).all()):
            raise ProtocolError("a scale of a codec is a finite number from 0; this bundle has others")
        whole = sent["values"] if self.bits == 8 else _parted(sent["values"], x.size)
        for part, blocks in self._parts(x.size):
            np.multiply(whole[part], self._spread(scales[blocks], part), out=x[part], dtype=np.float32)

    def _parts(self, n: int) -> Iterator[tuple[slice, slice]]:
        """Slices of entries, each with the slice of its blocks: as many entries at a time as a core's cache holds."""
        blocks = max(1, BLOCK // self.block)
        for first in range(0, -(-n // self.block), blocks):
            yield slice(first * self.block, min(n, (first + blocks) * self.block)), slice(first, first + blocks)

    def _spread(self, scales: Vector, part: slice) -> Vector:
        n = part.stop - part.start
        return np.repeat(scales, min(self.block, n))[:n]  # one block may be far longer than all entries


def _scales(x: Vector, block: int, top: int) -> Vector:
    """The least float32, for each block, that times `top` reaches its largest |x|: so no entry is more than `top` scales."""
    peak = np.maximum.reduceat(np.abs(x), np.arange(0, x.size, min(block, x.size)))
    scale = peak / np.float32(top)
    return np.where(scale.astype(np.float64) * top < peak, np.nextafter(scale, np.float32(np.inf)), scale)


def _up_or_down(steps: Vector, rng: np.random.Generator) -> Vector:
    """Whole numbers whose mean is `steps`. A draw is compared with the fraction: their sum would round, and pass the top."""
    low = np.floor(steps)
    return low + (rng.random(steps.size, np.float32) < steps - low)


def _paired(whole: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Two whole numbers from -7 to 7 in each byte, plus 8 each, the first in the lower half."""
    halves = np.full(whole.size + whole.size % 2, 8, np.uint8)
    halves[: whole.size] = (whole + 8).view(np.uint8)
    pairs: npt.NDArray[np.uint8] = np.bitwise_or(halves[0::2], halves[1::2] << np.uint8(4))
    return pairs


def _parted(pairs: npt.NDArray[np.uint8], n: int) -> npt.NDArray[np.int8]:
    whole = np.empty((pairs.size, 2), np.int8)
    whole[:, 0], whole[:, 1] = pairs & 15, pairs >> 4
    return whole.reshape(-1)[:n] - np.int8(8)


def check(holds: bool, name: str, value: object, allowed: str) -> None:
    """Raise UserError unless `holds`."""
    if not holds:
        raise UserError(f"{name}={value!r}: must be {allowed}")
