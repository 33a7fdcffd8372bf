"""The places of a coordinator's arrays: messages, shared memory, pieces, files. deciding/traffic.py decides what is done with
these arrays.

The one idea: every way in ends in a bundle, made of the arrays that the delivery holds, so the learner folds a contribution in
without asking which way its arrays came. A contribution in pieces must be whole before anything of it touches the sum, and a
large one must not cost a model of memory meanwhile: it waits in a file, and is read back piece by piece while it is folded in.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from shoal.coordinator.deciding.deeds import Open, Opened, Ship, Store, Stored
from shoal.coordinator.deciding.receiving import Delivery
from shoal.coordinator.keeping.disk import REAL, DiskTrouble, trouble, write_all
from shoal.coordinator.sharing import Sharing
from shoal.protocol.errors import ProtocolError
from shoal.protocol.layout import Bundle, Bytes, Layout, Scattered, run_of
from shoal.protocol.link import Part

READ = 1 << 22  # bytes of a file read at a time


class Frames:
    """Pieces in memory, as they came, until all are here: nothing is copied."""

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


Gathered: TypeAlias = Frames | Spool


class Arrays:
    """A coordinator's arrays, used by the socket thread alone. layouts: the layouts that contributions may have. folder: for
    contributions too large for memory; None: the system's temporary folder. near: True if actors are in this very process."""

    def __init__(self, layouts: Iterable[Layout], sharing: Sharing, folder: Path | None, near: bool) -> None:
        self.layouts: Mapping[str, Layout] = {layout.digest: layout for layout in layouts}
        self.sharing, self.folder, self.near = sharing, folder, near
        self._down = self._up = 0

    def cut(self, ship: Ship) -> Bytes | Part | None:
        """The bytes of `ship` to send; None if there are none."""
        nbytes = ship.last - ship.first
        self._down += nbytes
        arrays: Bytes = ship.arrays  # type: ignore[assignment]  # published weights, or their changes
        return arrays if nbytes == arrays.nbytes else Part(arrays, ship.first, ship.last) if nbytes else None

    def came(self, payload: memoryview) -> None:
        self._up += payload.nbytes

    def open(self, asked: Open) -> Opened:
        """A contribution's arrays where they lie in the actor's shared memory; or why they cannot be read there."""
        try:
            return Opened(asked, self.sharing.contribution(asked.message.slot))
        except ProtocolError as wrong:
            return Opened(asked, None, f"shared memory: {wrong}")

    def store(self, store: Store) -> Stored:
        """Put a piece to the delivery's earlier pieces; in a file, if the contribution is too large for memory."""
        delivery = store.delivery
        try:
            if delivery.arrays is None:
                delivery.arrays = Spool(self.folder) if delivery.large else Frames()
            gathered: Gathered = delivery.arrays
            gathered.put(store.first, store.piece)
        except DiskTrouble as full:
            return Stored(delivery, str(full))
        return Stored(delivery)

    def bundle(self, delivery: Delivery) -> Bundle | None:
        """The bundle of a contribution all of which is here; None if the contribution has no arrays."""
        if delivery.arrays is None:
            return None
        digest = delivery.message.layout
        layout = self.layouts.get(digest) or Layout.run(run_of(digest) or 0)  # traffic lets no other layout in
        if delivery.fetch is None:
            return Bundle.of_buffer(layout, delivery.arrays)
        gathered: Gathered = delivery.arrays
        return gathered.bundle(layout)

    def let_go(self, delivery: Delivery) -> None:
        """Free the delivery's memory, file or slot."""
        if delivery.fetch is not None:
            delivery.arrays.close()
        else:
            self.sharing.done(delivery.message.slot)
        delivery.arrays = None

    def flush(self) -> dict[str, float]:
        """Bytes of arrays that went to actors and came from them by sockets since the last flush; bytes sent again count again.
        Arrays in shared memory do not travel. In the plain loop nothing travels: both are 0."""
        down, up = (0, 0) if self.near else (self._down, self._up)
        self._down = self._up = 0
        return {"down_bytes": float(down), "up_bytes": float(up)}
