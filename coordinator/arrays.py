"""How arrays leave the coordinator and reach it: with their message, in shared memory, or fetched in pieces.

The one idea: whoever wants them does not ask which way they come. Every way in ends in a bundle, and every bundle is let go of
when it was folded in or is not wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from shoal.coordinator.disk import DiskTrouble
from shoal.coordinator.receiving import Receiving
from shoal.coordinator.roster import Roster
from shoal.coordinator.serving import Serving
from shoal.coordinator.sharing import Sharing
from shoal.coordinator.spool import Frames, Spool, Store
from shoal.protocol.errors import ProtocolError
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.link import Part, Payload
from shoal.protocol.messages import Chunk, Contribute, TaskName, Weights

ROOM = 1 << 25  # bytes of contributions that are fetched and not yet folded in, where models are small
SHARE = 0.4  # of a model, that these may be where it is large


class Arrays:
    """layouts: those that contributions may have. inline: bytes that go with their message at most. model: bytes of the
    weights. folder: on the disk that has room for contributions too large for memory; the system's own, if None. Used by the
    socket thread alone."""

    def __init__(
        self, layouts: Iterable[Layout], inline: int, model: int, sharing: Sharing | None, folder: Path | None
    ) -> None:
        self.layouts: Mapping[str, Layout] = {layout.digest: layout for layout in layouts}
        self.inline, self.sharing, self.folder = inline, sharing, folder
        self.serving, self.receiving = Serving(), Receiving(max(ROOM, int(SHARE * model)))
        self._sharers: set[bytes] = set()
        self._stores: dict[TaskName, Store] = {}  # contributions that come in pieces
        self._here: dict[TaskName, Bundle] = {}  # contributions that have come and are not let go of

    # Weights

    def publish(self, version: int, weights: Bundle, roster: Roster) -> None:
        """This is what goes out from now on."""
        self._version, self._weights = version, weights
        if weights.data.nbytes > self.inline:
            self.serving.publish(version, weights, roster.actors.keys())
        if self.sharing:
            self.sharing.publish(version, weights, (actor.peer for actor in roster.actors.values()))

    def share(self, peer: bytes) -> tuple[int, ...]:
        """What an actor of this machine is offered; () where arrays go by the socket."""
        if self.sharing is None:
            return ()
        self._sharers.add(peer)
        return self.sharing.offer

    def weights(self, peer: bytes, session: bytes) -> tuple[Weights, Payload | None]:
        """The message that brings the newest weights, and its payload."""
        nbytes = self._weights.data.nbytes
        if self.sharing and peer in self._sharers and (slot := self.sharing.lend(peer, self._version)):
            return Weights(self._version, slot), None
        if nbytes <= self.inline:
            return Weights(self._version), self._weights.data
        self.serving.begin(session, self._version)
        return Weights(self._version, (), nbytes), None

    def part(self, session: bytes, version: int, first: int, last: int) -> Part | None:
        """Some bytes of weights for one who fetches them; None where they are not to be had (any more)."""
        return self.serving.part(session, version, first, last)

    def arrived(self, peer: bytes, session: bytes, version: int, using: int) -> None:
        """Weights did; what is older than `using` is not looked at any more."""
        self.serving.end(session, version)
        if self.sharing:
            self.sharing.moved_on(peer, using)

    # Contributions

    def take(self, peer: bytes, message: Contribute, payload: memoryview | None) -> tuple[str, bool]:
        """What is wrong with a contribution's arrays, before anyone looks at their numbers ("" if nothing), and if they are
        here."""
        if message.slot:
            payload, fault = self._shared(peer, message)
            if fault:
                return fault, True
        waits = message.nbytes > 0 and payload is None
        if fault := self._fault(message, message.nbytes if waits else 0 if payload is None else len(payload)):
            return fault, True
        if payload is not None:
            self._here[message.task] = Bundle.of_buffer(self.layouts[message.layout], payload)
        return "", not waits

    def _shared(self, peer: bytes, message: Contribute) -> tuple[memoryview | None, str]:
        """Arrays where they lie in the actor's shared memory; or why that cannot be."""
        if self.sharing is None or peer not in self._sharers:
            return None, "arrays in shared memory, where none was offered"
        try:
            payload = self.sharing.contribution(message.slot).data
        except ProtocolError as wrong:
            return None, f"shared memory: {wrong}"
        self.sharing.moved_on(peer, message.made_from)
        return payload, ""

    def _fault(self, message: Contribute, nbytes: int) -> str:
        if not message.layout:
            return "arrays without a layout" if nbytes else ""
        layout = self.layouts.get(message.layout)
        if layout is None:
            known = ", ".join(self.layouts)
            return f"layout {message.layout!a} is none of this run's ({known}): the actor runs another model or environment"
        return "" if nbytes == layout.nbytes else f"{nbytes} bytes of arrays where its layout has {layout.nbytes}"

    def came(self, session: bytes, chunk: Chunk, payload: memoryview | None, now: float) -> Contribute | None:
        """A piece of a contribution. Returns the contribution when all of it is here. Raises DiskTrouble; then what was here of
        it is gone, and it is fetched anew when it is said again."""
        nbytes = 0 if payload is None else len(payload)
        stream = self.receiving.came(session, chunk, now) if nbytes == chunk.last - chunk.first else None
        if stream is None:
            return None
        message = stream.message
        if nbytes:
            try:
                self._store(message).put(chunk.first, payload)
            except DiskTrouble:
                self.drop(message.task)
                raise
        if not stream.whole:
            return None
        self._here[message.task] = self._store(message).bundle(self.layouts[message.layout])
        return message

    def _store(self, message: Contribute) -> Store:
        if message.task not in self._stores:
            large = message.nbytes > self.receiving.room
            self._stores[message.task] = Spool(self.folder) if large else Frames()
        return self._stores[message.task]

    def drop(self, task: TaskName) -> None:
        """What was fetched of it is not wanted."""
        self.receiving.drop(task)
        if store := self._stores.pop(task, None):
            store.close()

    def bundle(self, message: Contribute) -> Bundle | None:
        """Of a contribution that is here."""
        return self._here.get(message.task)

    def let_go(self, message: Contribute) -> None:
        """It is folded in, or not wanted."""
        self._here.pop(message.task, None)
        self.drop(message.task)
        if self.sharing and message.slot:
            with suppress(ProtocolError):  # what was never opened need not be let go
                self.sharing.done(message.slot)
