"""Clipping and Gaussian noise for differential privacy, on both ends of the wire.

The one idea: the noise is a function of a secret key and is added in whole numbers of a fixed grid. So a version that is made
again after a crash has the same noise, nobody without the key can subtract it, and the low bits of a float tell nothing.
(Noise in floats does: Mironov 2012, "On Significance of the Least Significant Bits For Differential Privacy".)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from shoal.protocol.errors import ProtocolError
from shoal.protocol.grid import BLOCK, GRID, LIMIT
from shoal.protocol.layout import Bundle

MARGIN = 2.0**-22  # share by which a clipped vector is shorter than asked: it covers the rounding of its float32 entries
SECRET = 32  # bytes of a secret
CLIP_NORM = "clip_norm"  # the norm that clients clip to, in a task's brief
UNCLIPPED = "unclipped"  # the total of deltas that clients did not have to clip
WHOLE = 2.0**-53  # a uniform draw is a whole number of 53 bits in this unit


def norm_of(bundle: Bundle) -> float:
    """The L2 norm of the float32 entries, summed in float64. Infinite or NaN if an entry is."""
    total = 0.0
    with np.errstate(all="ignore"):
        for _, piece in bundle.blocks():
            for at in range(0, piece.size, BLOCK):
                wide = piece[at : at + BLOCK].astype(np.float64)
                total += float(wide.dot(wide))
    return math.sqrt(total) if total >= 0 else math.nan


def clipped(bundle: Bundle, most: float) -> tuple[Bundle, bool]:
    """The bundle, scaled down if its L2 norm is above `most`; and whether it was scaled.

    The norm is that of the float32 entries. The result's norm is at most `most` also after each entry is rounded to a multiple
    of grid.GRID, so a bundle a little below `most` is scaled as well. Raises ProtocolError if an entry is not finite.
    """
    norm = norm_of(bundle)
    if not math.isfinite(norm):
        raise ProtocolError("a contribution that is to be clipped holds NaN, an infinity or entries too large to be squared")
    room = most * (1 - MARGIN) - math.sqrt(bundle.vector().size) * GRID / 2
    if norm <= room:
        return bundle, False
    scaled = bundle.copy()
    vector = scaled.vector()
    np.multiply(vector, np.float32(max(0.0, room) / norm), vector)
    return scaled, True


def key_of(secret: bytes, purpose: str, *parts: bytes | int) -> bytes:
    """32 bytes that follow from a secret, a purpose and numbers or bytes, and tell nothing about the secret (keyed BLAKE2b).

    purpose: at most 16 bytes.
    """
    digest = hashlib.blake2b(key=secret, digest_size=32, person=purpose.encode())
    for part in parts:
        raw = part.to_bytes(8, "little") if isinstance(part, int) else part
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.digest()


def gaussian(key: bytes, n: int, stddev: float) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """`n` draws from N(0, stddev^2), rounded to whole numbers of grid.GRID: (index of a piece's first draw, int64 piece).

    The draws follow from the key by SHAKE-256, so that some of them tell nothing about others, and the transform of Box and
    Muller. A draw is at most 8.6 times stddev.
    """
    if not 0 <= stddev * 10 <= LIMIT:
        raise ValueError(f"stddev={stddev:g}: noise on the grid has a standard deviation from 0 to {LIMIT / 10:g}")
    for first in range(0, n, BLOCK):
        size = min(BLOCK, n - first)
        pairs = -(-size // 2)
        raw = hashlib.shake_256(key + first.to_bytes(8, "little")).digest(16 * pairs)
        bits = np.frombuffer(raw, "<u8") >> np.uint64(11)
        radius = np.sqrt(-2.0 * np.log((bits[:pairs] + np.uint64(1)) * WHOLE)) * (stddev / GRID)  # of (0, 1]: no log of 0
        angle = bits[pairs:] * (2.0 * math.pi * WHOLE)
        draws = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size]
        yield first, np.rint(draws).astype(np.int64)


def number(key: bytes, stddev: float) -> float:
    """One draw from N(0, stddev^2) on the grid, as a float."""
    return next(float(draws[0]) * GRID for _, draws in gaussian(key, 1, stddev))


def noised(vector: npt.NDArray[np.float32], key: bytes, stddev: float) -> None:
    """Add noise to float32 entries in place: each is rounded to the grid, gets its draw, and is rounded to float32 once."""
    for first, draws in gaussian(key, vector.size, stddev):
        part = vector[first : first + draws.size]
        part[...] = (np.rint(part.astype(np.float64) / GRID).astype(np.int64) + draws) * GRID
