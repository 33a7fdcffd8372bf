"""An actor without a socket: a seat in the coordinator's own thread, and the wire to such seats.

The one idea: an actor does the same with messages and arrays whenever its tasks are done. So a seat is a session and its
arrays, and each wire (the plain loop's, and that of virtual time) only says when a task is done and when its result is there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from shoal.actors import Worker, close
from shoal.actors.effects import Adopt, Drop, Forget, Reset, Run, Say, Stow
from shoal.actors.events import Decoded, Event, Heard
from shoal.actors.labour import Product, perform
from shoal.actors.session import Session, hello
from shoal.protocol import draws
from shoal.protocol.codec import unpack_welcome
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.link import NEAR, Arrival, Payload
from shoal.protocol.messages import WHOLE, Contribute, Envelope, TaskName


class Seat:
    """The shell of one session. outbox: gets what the session says. start: called with the seat and each task that begins."""

    def __init__(
        self,
        session: Session,
        peer: bytes,
        outbox: deque[Arrival],
        start: Callable[[Seat, Run], None],
        clock: Callable[[], float],
    ) -> None:
        self.session, self.peer = session, peer
        self._outbox, self._start, self._clock = outbox, start, clock
        self.weights: Bundle | None = None
        self.workload: Mapping[str, Any] = {}
        self.kept: dict[TaskName, Bundle] = {}
        self._layout: Layout | None = None
        self._briefs: dict[str, Layout] = {}
        self._placed: dict[tuple[int, ...], Payload] = {}

    def handle(self, event: Event, payload: Payload | None = None) -> None:
        for effect in self.session.handle(event, self._clock()):
            match effect:
                case Say(envelope):
                    kept = self.kept.get(envelope.message.task) if isinstance(envelope.message, Contribute) else None
                    self._outbox.append(Arrival(self.peer, envelope, None if kept is None else kept.data.data))
                case Run():
                    self._start(self, effect)
                case Adopt(base=base):
                    if payload is not None and self._layout:
                        self.weights = Bundle.of_buffer(self._layout, payload)
                    if base != WHOLE:
                        self.handle(Decoded())
                case Stow(what) if payload is not None:
                    self._placed[what] = payload
                case Drop(what):
                    self._placed.pop(what, None)
                case Reset() if payload is not None:
                    terms = unpack_welcome(payload)
                    self.workload, self._layout = terms.workload, terms.layout
                    self._briefs = {layout.digest: layout for layout in terms.briefs}
                case Forget(task):
                    self.kept.pop(task, None)

    def brief(self, run: Run) -> Bundle | None:
        """The arrays of the task's brief, which are handed out once; None if it has none."""
        name = (run.task.version, run.task.index, run.attempt)
        return Bundle.of_buffer(self._briefs[run.brief], self._placed.pop(name)) if run.brief else None


class NearWire:
    """A wire whose other ends are seats in this thread. A subclass gives each seat its turn in `wait(seconds)`.

    workshop: a coordinator's workload -> the worker, which all seats share, made at the first task.
    """

    inline = NEAR

    def __init__(self, workshop: Callable[[Mapping[str, Any]], Worker], clock: Callable[[], float]) -> None:
        self.address = "here"
        self._workshop, self._clock = workshop, clock
        self._worker: Worker | None = None
        self._inbox: deque[tuple[bytes, Envelope, Payload | None]] = deque()
        self._outbox: deque[Arrival] = deque()

    def say(self, peer: bytes, envelope: Envelope, payload: Payload | None = None) -> str:
        self._inbox.append((peer, envelope, payload))
        return ""

    def flush(self) -> list[tuple[bytes, str]]:
        return []

    def silent(self, peer: bytes) -> float | None:
        return None

    def drain(self) -> Iterator[Arrival]:
        while self._outbox:
            yield self._outbox.popleft()

    def close(self) -> None:
        if self._worker is not None:
            close(self._worker)
        self._worker = None

    def _seated(self, name: str, session: bytes, peer: bytes, start: Callable[[Seat, Run], None]) -> Seat:
        its = Session(session, hello(name, "here", 0, ()), "here", self._clock())
        return Seat(its, peer, self._outbox, start, self._clock)

    def _hear(self, seats: Mapping[bytes, Seat]) -> Iterator[tuple[Seat, Envelope]]:
        """Hand each message that was sent to its seat, and yield both after that."""
        while self._inbox:
            peer, envelope, payload = self._inbox.popleft()
            if (seat := seats.get(peer)) and not seat.session.over:
                seat.handle(Heard(envelope), payload)
                yield seat, envelope

    def _done(self, seat: Seat, run: Run) -> Product:
        """Do a task now. What the making of the worker raises is no fault of the task."""
        assert seat.weights is not None
        with draws.alone():
            if self._worker is None:
                self._worker = self._workshop(seat.workload)
            worker = self._worker
            return perform(lambda: worker, run, seat.weights, 0.0, self._clock, seat.brief(run))
