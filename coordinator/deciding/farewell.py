"""The end of a run, as its actors hear of it: which actors have not yet acknowledged Stop.

The one idea: a Stop may be lost with a connection like any other message, and no connection leads to an actor that is between
two. So the coordinator answers every message with Stop again, until each actor has said Bye or MOMENT seconds are over.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from shoal.coordinator.deciding.actor import Actor
from shoal.coordinator.deciding.events import Effect, Event, Heard, Lost, Send
from shoal.protocol.messages import Bye, Envelope, Stop

MOMENT = 3.0  # seconds that actors have to come back and hear Stop: longer than an actor's silence between two Hellos
ASTRAY = 10.0  # seconds after the loss of its connection for which an actor is expected back


@dataclass(slots=True)
class Farewell:
    """Actors that may not know of the end, by session. strays: actors whose connection was lost; unaware: actors without Bye.

    until: time when the coordinator stops listening. Times are in seconds of a clock that never goes back.
    """

    strays: OrderedDict[bytes, Actor] = field(default_factory=OrderedDict)  # earliest loss first
    unaware: dict[bytes, Actor] = field(default_factory=dict)
    until: float = 0.0
    last: Stop = field(default_factory=lambda: Stop(""))
    epoch: int = 0

    def lost(self, actor: Actor, now: float) -> None:
        """Record that the actor's connection is lost; the actor may come back over another connection."""
        actor.lost_at = now
        self.strays[actor.session] = actor
        self.strays.move_to_end(actor.session)
        while next(iter(self.strays.values())).lost_at < now - ASTRAY:
            self.strays.popitem(last=False)

    def back(self, session: bytes) -> None:
        self.strays.pop(session, None)

    def dead(self, peer: bytes) -> None:
        """Forget the actor at `peer`: its process has ended and will not come back."""
        for astray in (self.strays, self.unaware):
            for session in [session for session, actor in astray.items() if actor.peer == peer]:
                del astray[session]

    def begin(self, last: Stop, epoch: int, actors: dict[bytes, Actor], now: float) -> None:
        """Begin the farewell: the core has said Stop once to each of `actors`, who are here."""
        self.last, self.epoch, self.until = last, epoch, now + MOMENT
        self.unaware = {session: actor for session, actor in self.strays.items() if actor.lost_at >= now - ASTRAY} | actors

    def answer(self, event: Event) -> list[Effect]:
        """Return the effects that answer an event after the end of the run."""
        match event:
            case Heard(peer, envelope, user=user):
                actor = self.unaware.get(envelope.session)
                if actor is not None and actor.user != user:
                    return []  # the key of one actor spoke for another
                if not isinstance(envelope.message, Bye):
                    return [Send(peer, Envelope(envelope.session, self.epoch, self.last))]
                self.unaware.pop(envelope.session, None)
            case Lost(peer, dead=True):
                self.dead(peer)
        return []

    def waits(self, now: float) -> bool:
        """Return whether an actor without Bye may still be heard: before `until`."""
        return bool(self.unaware) and now < self.until
