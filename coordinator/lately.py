"""What changed in the weights lately, for actors that hold a recent version.

The one idea: changes are cheaper than the whole only for an actor that holds a recent version, so no more of them are kept than
the whole has bytes. The learner's thread joins them in one buffer, once a version; whoever sends them only cuts.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal.protocol.changes import joined, last
from shoal.protocol.layout import Bundle, Bytes


@dataclass(frozen=True, slots=True)
class Lately:
    """changes: of the versions up to `version`, oldest first, each as long as the others. data: all of them, joined. A value:
    any thread may read it."""

    version: int = -1
    changes: tuple[Bundle, ...] = ()
    data: Bytes | None = None

    def then(self, version: int, change: Bundle | None, room: int) -> Lately:
        """What changed lately once `version` is there. change: since the version before; None where that is not told. room:
        bytes of the whole."""
        changes = () if change is None else (*self.changes, change)
        while sum(one.data.nbytes for one in changes) >= room:
            changes = changes[1:]
        return Lately(version, changes, joined(changes) if len(changes) > 1 else changes[0].data if changes else None)

    def since(self, version: int) -> Bytes | None:
        """All that changed since then, in one buffer; None where that is too long ago, or no time at all."""
        count = self.version - version
        if self.data is None or not 0 < count <= len(self.changes):
            return None
        return last(self.data, self.changes[-1], count)
