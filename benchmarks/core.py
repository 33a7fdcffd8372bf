"""Cost of a message in the coordinator's core, with 10 actors and with 10,000.

The one idea: the core runs alone, in memory, and each effect is answered at once by the event that a real run would bring.
"""

from __future__ import annotations

import gc
import time
from collections import deque

from shoal.benchmarks.case import Finding
from shoal.benchmarks.timing import interleaved
from shoal.coordinator.deciding.bounds import Bounds, Goal
from shoal.coordinator.deciding.core import Core
from shoal.coordinator.deciding.events import Admit, Effect, Event, Fold, Folded, Heard, Send, SendWeights, Step, Stepped, Tick
from shoal.coordinator.deciding.plans.stream import Stream
from shoal.protocol.messages import PROTOCOL, Assign, Contribute, Envelope, Have, Hello

FEW, MANY = 10, 10_000
TURN = 64  # messages between two ticks


def core(quick: bool) -> Finding:
    """Measures CPU microseconds of a message (contribution or acknowledged weights), steps and ticks included."""
    messages = 60_000 if quick else 300_000
    few, many = interleaved(3, lambda: Crowd(FEW).cost(messages), lambda: Crowd(MANY).cost(messages))
    return Finding(
        figure=many * 1e6,
        unit=f"us a message with {MANY:,} actors",
        goal=1.2 * few * 1e6,
        floor=few * 1e6,
        ratio=many / few,
        holds=many <= 1.2 * few,
        asked=f"at most 20 % more than with {FEW} actors",
        details={"floor": f"the same with {FEW} actors", "messages": messages},
    )


class Crowd:
    """A core and actors that answer at once. A step takes as many contributions as there are actors."""

    def __init__(self, actors: int) -> None:
        self.core = Core(Stream(actors, max_lag=8), Goal(), Bounds(patience=1e9))
        self.now = 0.0
        self.heard = 0
        self.assigned: deque[tuple[bytes, bytes, Assign]] = deque()
        self.held: dict[bytes, int] = {}
        for number in range(actors):
            name = number.to_bytes(8, "big")
            self.events(Heard(name, Envelope(name, 0, Hello(PROTOCOL, f"actor-{number}", "here", number, ()))))

    def cost(self, messages: int) -> float:
        """Returns CPU seconds for each of `messages` messages."""
        self.heard = 0
        gc.collect()
        began = time.thread_time()
        while self.heard < messages:
            for _ in range(TURN):
                self.contribute(*self.assigned.popleft())
            self.events(Tick())
        return (time.thread_time() - began) / self.heard

    def contribute(self, peer: bytes, session: bytes, task: Assign) -> None:
        made = Contribute(task.task, task.attempt, self.held[session], 1.0, "w", False, {"loss": (0.5, 1.0)}, {}, 0.0, 0.0)
        self.heard += 1
        self.events(Heard(peer, Envelope(session, 1, made)))

    def events(self, event: Event) -> None:
        """Handles an event, and the events that answer the effects."""
        waiting = deque([event])
        while waiting:
            self.now += 1e-6
            for effect in self.core.handle(waiting.popleft(), self.now):
                if (answer := self.answer(effect)) is not None:
                    waiting.append(answer)

    def answer(self, effect: Effect) -> Event | None:
        match effect:
            case Send(peer, Envelope(session, _, Assign() as task)):
                self.assigned.append((peer, session, task))
            case SendWeights(peer, session, version):
                self.held[session] = version
                self.heard += 1
                return Heard(peer, Envelope(session, 1, Have(version)))
            case Fold(task):
                return Folded((task.version, task.index))
            case Step(version):
                return Stepped(version, {})
            case Admit():
                return None
        return None
