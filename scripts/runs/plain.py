"""The plain loop: coordinator and one actor in one process and one thread, without sockets (`--actors 0`).

The one idea: the plain loop differs from a run over sockets in the wire alone. Core, session, worker and learner are the same
code, so that both runs must have the same numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from shoal.actors import Worker, close
from shoal.actors.effects import Adopt, Drop, Forget, Reset, Run, Say, Stow
from shoal.actors.events import Decoded, Done, Event, Heard, Tick
from shoal.actors.labour import perform
from shoal.actors.session import Session, hello
from shoal.protocol import draws
from shoal.protocol.codec import unpack_welcome
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.link import NEAR, Arrival, Payload
from shoal.protocol.messages import WHOLE, Contribute, Envelope

PEER = b"here"


class PlainWire:
    """A wire with one actor at its other end. The actor works while the coordinator waits."""

    inline = NEAR

    def __init__(self, workshop: Callable[[Mapping[str, Any]], Worker], clock: Callable[[], float]) -> None:
        self.address = "here"
        self._workshop, self._clock = workshop, clock
        self._session = Session(b"plain", hello("plain", "here", 0, ()), "here", clock())
        self._inbox: deque[tuple[Envelope, Payload | None]] = deque()
        self._outbox: deque[Arrival] = deque()
        self._due: deque[Run] = deque()
        self._layout: Layout | None = None
        self._briefs: dict[str, Layout] = {}
        self._placed: dict[tuple[int, ...], Payload] = {}
        self._weights: Bundle | None = None
        self._worker: Worker | None = None
        self._workload: Mapping[str, Any] = {}
        self._kept: dict[tuple[int, int], Bundle] = {}

    def say(self, peer: bytes, envelope: Envelope, payload: Payload | None = None) -> str:
        self._inbox.append((envelope, payload))
        return ""

    def flush(self) -> list[tuple[bytes, str]]:
        return []

    def silent(self, peer: bytes) -> float | None:
        return None

    def drain(self) -> Iterator[Arrival]:
        while self._outbox:
            yield self._outbox.popleft()

    def wait(self, seconds: float) -> None:
        """Give the actor its turn: it takes all messages that were sent, and does one task."""
        self._handle(Tick(), None)
        while self._inbox:
            envelope, payload = self._inbox.popleft()
            self._handle(Heard(envelope), payload)
        if self._due and self._weights is not None and not self._session.over:
            run = self._due.popleft()
            with draws.alone():
                worker = self._hand()  # what this raises is no fault of the task
                product = perform(lambda: worker, run, self._weights, 0.0, self._clock, self._brief(run))
            if product.bundle is not None:
                self._kept[product.message.task] = product.bundle
            self._handle(Done(product.message, product.clients), None)

    def close(self) -> None:
        if self._worker is not None:
            close(self._worker)
        self._worker = None

    def _hand(self) -> Worker:
        if self._worker is None:
            self._worker = self._workshop(self._workload)
        return self._worker

    def _handle(self, event: Event, payload: Payload | None) -> None:
        for effect in self._session.handle(event, self._clock()):
            match effect:
                case Say(envelope):
                    self._outbox.append(self._arrival(envelope))
                case Run():
                    self._due.append(effect)
                case Adopt(base=base):
                    if payload is not None and self._layout:
                        self._weights = Bundle.of_buffer(self._layout, payload)
                    if base != WHOLE:
                        self._handle(Decoded(), None)
                case Stow(what) if payload is not None:
                    self._placed[what] = payload
                case Drop(what):
                    self._placed.pop(what, None)
                case Reset() if payload is not None:
                    terms = unpack_welcome(payload)
                    self._workload, self._layout = terms.workload, terms.layout
                    self._briefs = {layout.digest: layout for layout in terms.briefs}
                case Forget(task):
                    self._kept.pop(task, None)

    def _brief(self, run: Run) -> Bundle | None:
        name = (run.task.version, run.task.index, run.attempt)
        return Bundle.of_buffer(self._briefs[run.brief], self._placed.pop(name)) if run.brief else None

    def _arrival(self, envelope: Envelope) -> Arrival:
        kept = self._kept.get(envelope.message.task) if isinstance(envelope.message, Contribute) else None
        return Arrival(PEER, envelope, None if kept is None else kept.data.data)
