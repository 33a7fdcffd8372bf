"""Where a coordinator's arrays are: in messages, in shared memory, in pieces, in a file. deciding/traffic.py decides what is
done with these arrays.

The one idea: every way in ends in a bundle, made of the arrays that the delivery holds, so the learner folds a contribution in
without asking which way its arrays came.
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
    """A coordinator's arrays, used by the socket thread alone. layouts: the layouts that contributions may have. folder: for
    contributions too large for memory; None: the system's temporary folder. near: True if actors are in this very process."""

    def __init__(self, layouts: Iterable[Layout], sharing: Sharing | None, folder: Path | None, near: bool) -> None:
        self.layouts: Mapping[str, Layout] = {layout.digest: layout for layout in layouts}
        self.sharing, self.folder, self.near = sharing, folder, near
        self._down = self._up = 0

    # Weights

    def begin(self, version: int, weights: Bundle) -> None:
        """Copy the weights that a run begins with, before any actor is spoken to. No other weights are copied here."""
        if self.sharing and (room := self.sharing.draft()) is not None:
            np.copyto(room, weights.data)
            self.sharing.publish(version)

    def draft(self) -> Bytes | None:
        """Memory shared with this machine's actors, for the next version: uint8, as large as the weights. The learner writes
        the next weights there before they are published. None if there is no room."""
        return self.sharing.draft() if self.sharing else None

    def publish(self, version: int, moved: bool) -> None:
        """Publish the drafted memory as the newest version. moved: False if its weights are those of the version before."""
        if self.sharing and moved:
            self.sharing.publish(version)
        elif self.sharing:
            self.sharing.relabel(version)

    def lend(self, session: bytes, weights: Weights) -> tuple[int, ...]:
        """Where these weights lie in shared memory, held for this session; () if they do not lie there."""
        return self.sharing.lend(session, weights.version) if self.sharing else ()

    def release(self, session: bytes, using: int) -> None:
        """Release the weights older than version `using`: this session does not look at them any more."""
        if self.sharing:
            self.sharing.moved_on(session, using)

    def rename(self, session: bytes, version: int) -> None:
        """Note that the published weights, which this session looks at, are those of `version` too."""
        if self.sharing:
            self.sharing.keep(session, version)

    def gone(self, session: bytes) -> None:
        if self.sharing:
            self.sharing.gone(session)

    def cut(self, ship: Ship) -> Bytes | Part | None:
        """The bytes of `ship` to send; None if there are none."""
        nbytes = ship.last - ship.first
        self._down += nbytes
        arrays: Bytes = ship.arrays  # type: ignore[assignment]  # published weights, or their changes
        return arrays if nbytes == arrays.nbytes else Part(arrays, ship.first, ship.last) if nbytes else None

    # Contributions

    def came(self, payload: memoryview) -> None:
        self._up += payload.nbytes

    def open(self, asked: Open) -> Opened:
        """A contribution's arrays where they lie in the actor's shared memory; or why they cannot be read there."""
        assert self.sharing is not None  # or no actor was offered shared memory
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
        except DiskTrouble as trouble:
            return Stored(delivery, str(trouble))
        return Stored(delivery)

    def bundle(self, delivery: Delivery) -> Bundle | None:
        """The bundle of a contribution all of which is here; None if the contribution has no arrays."""
        if delivery.arrays is None:
            return None
        layout = self.layouts[delivery.message.layout]
        if delivery.fetch is None:
            return Bundle.of_buffer(layout, delivery.arrays)
        gathered: Gathered = delivery.arrays
        return gathered.bundle(layout)

    def let_go(self, delivery: Delivery) -> None:
        """Free the delivery's memory, file or slot."""
        if delivery.fetch is not None:
            delivery.arrays.close()
        elif self.sharing:
            self.sharing.done(delivery.message.slot)
        delivery.arrays = None

    # Bytes that travelled

    def flush(self) -> dict[str, float]:
        """Bytes of arrays that went to actors and came from them by sockets since the last flush; bytes sent again count again.
        Arrays in shared memory do not travel. In the plain loop nothing travels: both are 0."""
        down, up = (0, 0) if self.near else (self._down, self._up)
        self._down = self._up = 0
        return {"down_bytes": float(down), "up_bytes": float(up)}
