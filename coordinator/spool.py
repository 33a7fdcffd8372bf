"""Where a contribution that comes in pieces waits until all pieces are here.

The one idea: a contribution must be whole before anything of it touches the sum, and a large contribution must not cost a model
of memory meanwhile: it waits in a file that has no name, and is read back a piece at a time while it is folded in.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from shoal.coordinator.keeping.disk import REAL, trouble, write_all
from shoal.protocol.layout import Bundle, Bytes, Layout, Scattered

READ = 1 << 22  # bytes read at a time


class Gathered(Protocol):
    """A place for pieces as they come, which makes a bundle of them once all have come."""

    def put(self, first: int, piece: Any) -> None: ...

    def bundle(self, layout: Layout) -> Bundle: ...

    def close(self) -> None: ...


class Frames:
    """Pieces in memory, as they came: nothing is copied."""

    def __init__(self) -> None:
        self._pieces: dict[int, Bytes] = {}

    def put(self, first: int, piece: Any) -> None:
        self._pieces[first] = np.frombuffer(piece, np.uint8)

    def bundle(self, layout: Layout) -> Bundle:
        return Scattered(layout, [piece for _, piece in sorted(self._pieces.items())])

    def close(self) -> None:
        self._pieces.clear()


class Spool:
    """Pieces in a file without a name, which is gone with this process, however the process ends. Raises DiskTrouble."""

    def __init__(self, folder: Path | None) -> None:
        with trouble("make a file for what comes in pieces"):
            self._fd, path = tempfile.mkstemp(prefix="spool-", dir=folder)
            os.unlink(path)
        self._size = 0

    def put(self, first: int, piece: Any) -> None:
        with trouble("write what comes in pieces"):
            write_all(REAL, self._fd, [piece], first)
        self._size = max(self._size, first + len(piece))

    def bundle(self, layout: Layout) -> Bundle:
        return Scattered(layout, self._read)

    def _read(self) -> Iterator[Bytes]:
        room = np.empty(min(READ, self._size), np.uint8)
        for first in range(0, self._size, READ):
            piece = room[: min(READ, self._size - first)]
            got = os.preadv(self._fd, [piece.data], first)
            if got != len(piece):
                raise OSError(f"{got} bytes of a spooled contribution where {len(piece)} were written")
            yield piece

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
