"""The life of a client's environments as bytes: what its next rollout goes on from.

The one idea: the bytes travel up in a trajectory and down in the brief of the client's next task. So a client that is played by
another actor, or in another life of the run, goes on where it was. An actor that holds the environments of that life already
sees so by two numbers, and reads no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.envs.spaces import LIFE, Kept, Spaces
from shoal.envs.states import NoStateError
from shoal.protocol import values
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.layout import DTYPES, Bundle, Layout, aligned

Bytes = npt.NDArray[np.uint8]
ROW = 32  # bytes of an environment's flags and of its episode's statistics, rather more than they take
SPARE = 1024  # bytes for names, and for a vector's own attributes
HEAD = 24  # bytes of three int64: length of the state, the version at which the life began, and its number of rollouts


@dataclass(frozen=True, slots=True)
class Told:
    """A life as its bytes tell it. born: version at which its environments began. rollouts: since then."""

    born: int
    rollouts: int
    packed: bytes

    def later(self, born: int, rollouts: int) -> bool:
        """True if this is a later life than the one that began at version `born`, after as many rollouts."""
        return (self.born, self.rollouts) > (born, rollouts)

    def state(self) -> Any:
        """The state that `tell` was given; None if none was told. Raises ProtocolError for bytes that are no plain value."""
        return values.read_quickly(self.packed) if self.packed else None


def layout(size: int) -> Layout:
    """The layout of a brief with a life of `size` bytes."""
    return Layout.of({LIFE: ("u1", (size,))})


def room_for(each: int, spaces: Spaces, memory: Kept, num_envs: int) -> int:
    """Bytes of a life. each: bytes that the state of one environment takes at most. memory: a policy's recurrent state."""
    dtype, shape = spaces.record()
    beside = dtype.itemsize * math.prod(shape) + sum(DTYPES[kind].itemsize * math.prod(its) for kind, its in memory.values())
    return aligned(num_envs * (each + beside + ROW) + SPARE)


def tell(into: Bytes, born: int, rollouts: int, state: Callable[[], Mapping[str, Any]]) -> str:
    """Write a life. Returns why its state is not told: it has no plain values, or more bytes than `into`; "" if it is told."""
    why, packed = "", b""
    try:
        packed = values.pack_quickly(state())
    except (NoStateError, UserError) as odd:
        why = str(odd)
    if len(packed) > len(into) - HEAD:
        why, packed = f"their state takes {len(packed):,} bytes, and {len(into) - HEAD:,} were expected", b""
    into[:HEAD].view(np.int64)[:] = len(packed), born, rollouts
    into[HEAD : HEAD + len(packed)] = np.frombuffer(packed, np.uint8)
    return why


def heard(brief: Bundle) -> Told:
    """The life that a brief tells. Raises ProtocolError for bytes that are none."""
    raw = brief[LIFE]
    length, born, rollouts = (int(number) for number in np.frombuffer(raw[:HEAD].tobytes(), np.int64))
    if not 0 <= length <= len(raw) - HEAD:
        raise ProtocolError(f"a life of {length} bytes in {len(raw)}")
    return Told(born, rollouts, raw[HEAD : HEAD + length].tobytes())
