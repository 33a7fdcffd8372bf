"""How arrays leave the coordinator and reach it: with their message, in shared memory, or fetched in pieces.

The one idea: whoever wants them does not ask which way they come. Every way in ends in a bundle, and every bundle is let go of
when it was folded in or is not wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from shoal.coordinator.keeping.disk import DiskTrouble
from shoal.coordinator.lately import Lately
from shoal.coordinator.receiving import Receiving
from shoal.coordinator.serving import Serving, What
from shoal.coordinator.sharing import Sharing
from shoal.coordinator.spool import Frames, Spool, Store
from shoal.protocol.errors import ProtocolError
from shoal.protocol.fetching import MOST
from shoal.protocol.layout import Bundle, Bytes, Layout
from shoal.protocol.link import NEAR, Part, Payload
from shoal.protocol.messages import WHOLE, Assign, Chunk, Contribute, TaskName, Weights

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
        self._down = self._up = 0
        self._sharers: set[bytes] = set()
        self._stores: dict[TaskName, Store] = {}  # contributions that come in pieces
        self._briefs: dict[tuple[TaskName, int], Bundle] = {}  # by task and attempt
        self._here: dict[TaskName, Bundle] = {}  # contributions that have come and are not let go of

    # Weights

    def begin(self, version: int, weights: Bundle) -> None:
        """The weights that a run begins with: the only ones that are copied here, before anybody is spoken to."""
        if (room := self.draft()) is not None:
            np.copyto(room, weights.data)
        self.publish(version, weights, Lately(version))

    def draft(self) -> Bytes | None:
        """Memory that is shared with this machine's actors, for the next version: uint8, as large as the weights. Whoever makes
        these writes them there too, before they are published. None where there is no room."""
        return self.sharing.draft() if self.sharing else None

    def publish(self, version: int, weights: Bundle, lately: Lately, moved: bool = True) -> None:
        """These weights go out from now on, whole or as what changed lately. moved: False if they are those of the version
        before."""
        self._version, self._weights, self._lately = version, weights, lately
        self.serving.publish(version)
        if self.sharing and moved:
            self.sharing.publish(version)
        elif self.sharing:
            self.sharing.relabel(version)

    def gone(self, session: bytes) -> None:
        """This session's life here is over: nothing is kept of it."""
        self.receiving.gone(session)
        self.serving.gone(session)
        self._sharers.discard(session)
        if self.sharing:
            self.sharing.gone(session)

    def share(self, session: bytes) -> tuple[int, ...]:
        """What an actor of this machine is offered; () where arrays go by the socket."""
        if self.sharing is None:
            return ()
        self._sharers.add(session)
        return self.sharing.offer

    def weights(self, session: bytes, held: int, same: bool = False) -> tuple[Weights, Payload | None]:
        """The message that brings the newest weights to one who holds those of version `held`, and its payload. same: they are
        the same."""
        if same:
            if self.sharing:
                self.sharing.keep(session, self._version)
            return Weights(self._version, base=held), None
        if self.sharing and session in self._sharers and (slot := self.sharing.lend(session, self._version)):
            return Weights(self._version, slot), None
        base, data = held, self._lately.since(held) if self.inline < NEAR else None
        if data is None:
            base, data = WHOLE, self._weights.data
        if data.nbytes <= self.inline:
            self._count(down=data.nbytes)
            return Weights(self._version, base=base), data
        self.serving.begin(session, (self._version,) if base == WHOLE else (self._version, base), data)
        return Weights(self._version, (), data.nbytes, base), None

    def part(self, session: bytes, what: What, first: int, last: int) -> Part | None:
        """Some bytes of weights for one who fetches them; None where they are not to be had (any more)."""
        part = self.serving.part(session, what, first, last)
        self._count(down=0 if part is None else len(part))
        return part

    def arrived(self, session: bytes, version: int, using: int) -> None:
        """Weights did; what is older than `using` is not looked at any more."""
        self.serving.end(session, version)
        if self.sharing:
            self.sharing.moved_on(session, using)

    # Briefs

    def hand(self, task: TaskName, attempt: int, bundle: Bundle | None) -> None:
        """An attempt's own arrays, kept until they are not needed any more."""
        if bundle is not None:
            self._briefs[task, attempt] = bundle

    def brief(self, assign: Assign) -> tuple[Assign, Payload | None]:
        """The Assign that brings its brief or says how many bytes wait, and its payload."""
        data = self._briefs[assign.task, assign.attempt].data
        if data.nbytes > self.inline:
            return assign, None
        self._count(down=data.nbytes)
        return replace(assign, nbytes=0), data

    def brief_part(self, task: TaskName, attempt: int, first: int, last: int) -> Part | None:
        """Some bytes of a brief; None where it is not to be had (any more)."""
        bundle = self._briefs.get((task, attempt))
        if bundle is None or not 0 <= first <= last <= min(bundle.data.nbytes, first + MOST):
            return None
        self._count(down=last - first)
        return Part(bundle.data, first, last)

    def unbrief(self, task: TaskName, attempt: int) -> None:
        self._briefs.pop((task, attempt), None)

    # Contributions

    def take(self, session: bytes, message: Contribute, payload: memoryview | None) -> tuple[str, bool]:
        """What is wrong with a contribution's arrays, before anyone looks at their numbers ("" if nothing), and if they are
        here."""
        if message.slot:
            payload, fault = self._shared(session, message)
            if fault:
                return fault, True
        else:
            self._count(up=0 if payload is None else len(payload))
        waits = message.nbytes > 0 and payload is None
        if fault := self._fault(message, message.nbytes if waits else 0 if payload is None else len(payload)):
            return fault, True
        if payload is not None:
            self._here[message.task] = Bundle.of_buffer(self.layouts[message.layout], payload)
        return "", not waits

    def _shared(self, session: bytes, message: Contribute) -> tuple[memoryview | None, str]:
        """Arrays where they lie in the actor's shared memory; or why that cannot be."""
        if self.sharing is None or session not in self._sharers:
            return None, "arrays in shared memory, where none was offered"
        try:
            payload = self.sharing.contribution(message.slot).data
        except ProtocolError as wrong:
            return None, f"shared memory: {wrong}"
        self.sharing.moved_on(session, message.made_from)
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
        self._count(up=nbytes)
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

    # What it took

    def _count(self, down: int = 0, up: int = 0) -> None:
        if self.inline < NEAR:
            self._down, self._up = self._down + down, self._up + up

    def flush(self) -> dict[str, float]:
        """Bytes of arrays that went to actors and came from them by sockets since the last flush, what was sent again included.
        What lies in shared memory does not travel, nor does anything in the plain loop."""
        moved = {"down_bytes": float(self._down), "up_bytes": float(self._up)}
        self._down = self._up = 0
        return moved
