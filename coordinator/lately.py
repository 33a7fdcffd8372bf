"""The latest changes of the weights, for actors that hold a recent version.

The one idea: changes are cheaper than the weights only for an actor that holds a recent version, so the changes kept have fewer
bytes than the weights. The learner's thread joins the changes in one buffer, once a version; the socket thread only cuts it.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal.protocol.changes import joined, last
from shoal.protocol.layout import Bundle, Bytes


@dataclass(frozen=True, slots=True)
class Lately:
    """Recent changes of the weights, a value that any thread may read. changes: one for each version up to `version`, oldest
    first, all of one length. data: all changes joined; None if there are none."""

    version: int = -1
    changes: tuple[Bundle, ...] = ()
    data: Bytes | None = None

    def then(self, version: int, change: Bundle | None, room: int) -> Lately:
        """The recent changes once `version` is there. change: since the version before; None if the aggregator tells none.
        room: bytes of the weights."""
        changes = () if change is None else (*self.changes, change)
        while sum(one.data.nbytes for one in changes) >= room:
            changes = changes[1:]
        return Lately(version, changes, joined(changes) if len(changes) > 1 else changes[0].data if changes else None)

    def since(self, version: int) -> Bytes | None:
        """Return all changes since `version`, in one buffer; None if that version is too old for the changes kept, or not older
        than the newest."""
        count = self.version - version
        if self.data is None or not 0 < count <= len(self.changes):
            return None
        return last(self.data, self.changes[-1], count)
