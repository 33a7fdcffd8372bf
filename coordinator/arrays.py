"""Where a coordinator's arrays are: in messages, in shared memory, in pieces, in a file. What is done with them is decided in
deciding/traffic.py.

The one idea: every way in ends in a bundle, made of whatever its delivery holds, so that whoever folds it in does not ask which
way it came.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from shoal.coordinator.deciding.deeds import Open, Opened, Ship, Store, Stored
from shoal.coordinator.deciding.receiving import Delivery
from shoal.coordinator.keeping.disk import DiskTrouble
from shoal.coordinator.sharing import Sharing
from shoal.coordinator.spool import Frames, Gathered, Spool
from shoal.protocol.errors import ProtocolError
from shoal.protocol.layout import Bundle, Bytes, Layout
from shoal.protocol.link import Part
from shoal.protocol.messages import Weights


class Arrays:
    """layouts: those that contributions may have. folder: on the disk that has room for contributions too large for memory; the
    system's own, if None. near: actors are in this very process. Used by the socket thread alone."""

    def __init__(self, layouts: Iterable[Layout], sharing: Sharing | None, folder: Path | None, near: bool) -> None:
        self.layouts: Mapping[str, Layout] = {layout.digest: layout for layout in layouts}
        self.sharing, self.folder, self.near = sharing, folder, near
        self._down = self._up = 0

    # Weights

    def begin(self, version: int, weights: Bundle) -> None:
        """The weights that a run begins with: the only ones that are copied here, before anybody is spoken to."""
        if self.sharing and (room := self.sharing.draft()) is not None:
            np.copyto(room, weights.data)
            self.sharing.publish(version)

    def draft(self) -> Bytes | None:
        """Memory that is shared with this machine's actors, for the next version: uint8, as large as the weights. Whoever makes
        these writes them there too, before they are published. None where there is no room."""
        return self.sharing.draft() if self.sharing else None

    def publish(self, version: int, moved: bool) -> None:
        """What was written there is the newest version. moved: False if its weights are those of the version before."""
        if self.sharing and moved:
            self.sharing.publish(version)
        elif self.sharing:
            self.sharing.relabel(version)

    def lend(self, session: bytes, weights: Weights) -> tuple[int, ...]:
        """Where these weights lie in shared memory, held for this session; () where they do not."""
        return self.sharing.lend(session, weights.version) if self.sharing else ()

    def release(self, session: bytes, using: int) -> None:
        """This session looks at nothing older than `using`."""
        if self.sharing:
            self.sharing.moved_on(session, using)

    def rename(self, session: bytes, version: int) -> None:
        """The weights that this session looks at, and that are out, are those of `version` too."""
        if self.sharing:
            self.sharing.keep(session, version)

    def gone(self, session: bytes) -> None:
        if self.sharing:
            self.sharing.gone(session)

    def cut(self, ship: Ship) -> Bytes | Part | None:
        """The bytes to send."""
        nbytes = ship.last - ship.first
        self._down += nbytes
        arrays: Bytes = ship.arrays  # type: ignore[assignment]  # what was published, or what changed
        return arrays if nbytes == arrays.nbytes else Part(arrays, ship.first, ship.last) if nbytes else None

    # Contributions

    def came(self, payload: memoryview) -> None:
        self._up += payload.nbytes

    def open(self, asked: Open) -> Opened:
        """A contribution's arrays where they lie in the actor's shared memory; or why that cannot be."""
        assert self.sharing is not None  # or nobody was offered any
        try:
            return Opened(asked, self.sharing.contribution(asked.message.slot))
        except ProtocolError as wrong:
            return Opened(asked, None, f"shared memory: {wrong}")

    def store(self, store: Store) -> Stored:
        """Put a piece to those that are here. What is too large for memory goes to a file."""
        delivery = store.delivery
        try:
            if delivery.arrays is None:
                delivery.arrays = Spool(self.folder) if delivery.large else Frames()
            gathered: Gathered = delivery.arrays
            gathered.put(store.first, store.piece)
        except DiskTrouble as trouble:
            return Stored(delivery, str(trouble))
        return Stored(delivery)

    def bundle(self, delivery: Delivery) -> Bundle | None:
        """Of a contribution all of which is here; None where it has no arrays."""
        if delivery.arrays is None:
            return None
        layout = self.layouts[delivery.message.layout]
        if delivery.fetch is None:
            return Bundle.of_buffer(layout, delivery.arrays)
        gathered: Gathered = delivery.arrays
        return gathered.bundle(layout)

    def let_go(self, delivery: Delivery) -> None:
        """Its memory, file or slot is free."""
        if delivery.fetch is not None:
            delivery.arrays.close()
        elif self.sharing:
            self.sharing.done(delivery.message.slot)
        delivery.arrays = None

    # What it took

    def flush(self) -> dict[str, float]:
        """Bytes of arrays that went to actors and came from them by sockets since the last flush, what was sent again included.
        What lies in shared memory does not travel, nor does anything in the plain loop."""
        down, up = (0, 0) if self.near else (self._down, self._up)
        self._down = self._up = 0
        return {"down_bytes": float(down), "up_bytes": float(up)}
