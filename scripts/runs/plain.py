"""The plain loop: coordinator and one actor in one process and one thread, without sockets (`--actors 0`).

The one idea: the plain loop differs from a run over sockets in the wire alone. Core, session, worker and learner are the same
code, so that both runs must have the same numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from shoal.actors import Worker
from shoal.actors.effects import Run
from shoal.actors.events import Done, Tick
from shoal.runs.seat import NearWire

PEER = b"here"


class PlainWire(NearWire):
    """A wire with one actor at its other end. The actor works while the coordinator waits."""

    def __init__(self, workshop: Callable[[Mapping[str, Any]], Worker], clock: Callable[[], float]) -> None:
        super().__init__(workshop, clock)
        self._due: deque[Run] = deque()
        self._seat = self._seated("plain", b"plain", PEER, lambda seat, run: self._due.append(run))
        self._seats = {PEER: self._seat}

    def wait(self, seconds: float) -> None:
        """Give the actor its turn: it takes all messages that were sent, and does one task."""
        seat = self._seat
        seat.handle(Tick())
        for _ in self._hear(self._seats):
            pass
        if self._due and seat.weights is not None and not seat.session.over:
            product = self._done(seat, self._due.popleft())
            if product.bundle is not None:
                seat.kept[product.message.task] = product.bundle
            seat.handle(Done(product.message, product.clients))
