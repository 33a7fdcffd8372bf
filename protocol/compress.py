"""Codecs for bundles: the same entries, more or less exactly, in fewer bytes.

The one idea: the number of bytes that a codec makes follows from the number of entries alone, so that both ends know the
layout in advance, and a compressed contribution is a Bundle like any other. Bytes that no codec makes are refused when they
are decoded.

For x, float32 [n], if a `share` of the entries is kept (k of n), or `block` entries have one scale:

    codec      bytes                     error
    Float16    2 n                       |x| 2**-11 of each entry from 2**-14 on, 2**-25 below; up to 65504
    BFloat16   2 n                       |x| 2**-8 of each entry from 2**-126 on
    Blocks     n or n / 2, and a scale   stochastic: below one scale, 0 in the mean; nearest: half a scale
    TopK       8 k                       |error|^2 <= (1 - k / n) |x|^2
    RandomK    4 k + 8                   scaled: 0 in the mean, |error|^2 = (n / k - 1) |x|^2; else (1 - k / n) |x|^2 (means)

Only float32 entries are compressed: entries of other dtypes (counters, masks, halves) travel beside them as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.picking import RandomK, TopK
from shoal.protocol.rounding import Arrays, BFloat16, Blocks, Float16, Vector

CODECS = ("float16", "bfloat16", "int8", "int4", "topk", "randk")


class Codec(Protocol):
    """A codec of float32 vectors.

    contracts: True if |decode(encode(x)) - x|^2 < |x|^2 holds in the mean, for every x but 0 and entries too small to encode.
    With a codec that does not contract, error feedback may diverge.
    """

    @property
    def contracts(self) -> bool: ...

    def arrays(self, n: int) -> Arrays:
        """The arrays that carry n entries: name -> (dtype, shape)."""
        ...

    def encode(self, x: Vector, rng: np.random.Generator, out: Bundle) -> None:
        """Write x, float32 [n] and finite, into the arrays. Raises ProtocolError for an entry that the codec cannot hold."""
        ...

    def decode(self, sent: Bundle, x: Vector) -> None:
        """Write every entry of x, float32 [n], from `sent`. Raises ProtocolError for arrays that no `encode` makes."""
        ...


def codec_of(name: str, *, share: float = 0.1, block: int = 256, feedback: bool = False) -> Codec:
    """The codec of that name in CODECS: contracting with error feedback, unbiased without (if it can be). Raises UserError."""
    match name:
        case "float16":
            return Float16()
        case "bfloat16":
            return BFloat16()
        case "int8" | "int4":
            return Blocks(int(name[3:]), block, stochastic=not feedback)
        case "topk":
            return TopK(share)
        case "randk":
            return RandomK(share, scaled=not feedback)
    raise UserError(f"codec {name!r}: known are {', '.join(CODECS)}")


@dataclass(frozen=True, slots=True)
class Coding:
    """A codec as two ends agree on it. name: one of CODECS; share: share of the entries that topk and randk send; block:
    entries that have one scale in int8 and int4."""

    name: str
    share: float = 0.1
    block: int = 256

    def codec(self, *, feedback: bool) -> Codec:
        """The codec itself: see `codec_of`. Raises UserError."""
        return codec_of(self.name, share=self.share, block=self.block, feedback=feedback)

    def row(self) -> list[Any]:
        return [self.name, float(self.share), self.block]

    @classmethod
    def from_row(cls, row: Any) -> Coding:
        """The coding that a peer's row describes. Raises ProtocolError."""
        match row:
            case [str() as name, float() as share, int() as block] if name in CODECS and 0 < share <= 1 and block >= 1:
                return cls(name, share, block)
        raise ProtocolError("expected a codec [name, share, block]: a known name, a float above 0 to 1, a whole number from 1")


class Packed:
    """A codec for bundles of one layout, `dense`: float32 entries go through the codec, each other dtype as it is.

    layout: of the packed bundle: the codec's arrays, and a flat array "plain/i8" for all int64 entries, "plain/b1" ...
    """

    def __init__(self, codec: Codec, dense: Layout) -> None:
        self.codec, self.dense = codec, dense
        self.plain = tuple(dtype for dtype in dense.segments if dtype != "f4")
        empty = Bundle.zeros(dense)
        rest = {f"plain/{dtype}": (dtype, empty.vector(dtype).shape) for dtype in self.plain}
        self.layout = Layout.of({**codec.arrays(empty.vector().size), **rest})

    def pack(self, bundle: Bundle, rng: np.random.Generator) -> Bundle:
        """The bundle in fewer bytes. Raises ProtocolError for another layout, NaN, and entries that the codec cannot hold."""
        self.dense.expect(bundle.layout)
        _finite(bundle.vector())
        out = Bundle.zeros(self.layout)
        self.codec.encode(bundle.vector(), rng, out)
        for dtype in self.plain:
            out[f"plain/{dtype}"][...] = bundle.vector(dtype)
        return out

    def unpack(self, sent: Bundle, into: Bundle) -> None:
        """Write every entry of `into`, a bundle of layout `dense`. Raises ProtocolError for bytes that `pack` does not make."""
        self.layout.expect(sent.layout)
        with np.errstate(all="ignore"):  # the check below finds NaN and overflows
            self.codec.decode(sent, into.vector())
        _finite(into.vector())
        for dtype in self.plain:
            into.vector(dtype)[...] = sent[f"plain/{dtype}"]


def _finite(x: Vector) -> None:
    """Refuse NaN and infinities. One pass where all is well, because a dot product is finite only if every entry is."""
    with np.errstate(over="ignore", invalid="ignore"):
        square = np.dot(x, x)
    if not np.isfinite(square) and not np.isfinite(x).all():
        raise ProtocolError("NaN or an infinity in the float32 entries of a bundle that is compressed")
