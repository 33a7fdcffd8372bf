"""Float32 numbers as whole numbers in the same order, so that a quantile is found digit by digit.

The one idea: the bits of a float, read as an unsigned number, are in the order of the floats once the sign is turned.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint32]
SIGN = np.uint32(1 << 31)


def keys_of(x: npt.NDArray[Any]) -> Keys:
    """The keys of float32 numbers: a < b if and only if key(a) < key(b). -0.0 becomes 0.0."""
    bits = (np.asarray(x, np.float32) + np.float32(0)).view(np.uint32)
    return np.where(bits & SIGN, ~bits, bits | SIGN)


def floats_of(keys: Keys) -> npt.NDArray[np.float32]:
    """The float32 numbers of keys."""
    return np.where(keys & SIGN, keys & ~SIGN, ~keys).astype(np.uint32).view(np.float32)
