"""The end of a run, as its actors hear of it: who has not said yet that it knows.

The one idea: the word that the run is over may be lost with a connection like any other word, and an actor that is between
two connections has none that leads to it. So whoever still speaks is told again, until each has said Bye or a moment is over.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from shoal.coordinator.deciding.events import Effect, Event, Heard, Lost, Send
from shoal.coordinator.deciding.roster import Actor
from shoal.protocol.messages import Bye, Envelope, Stop

MOMENT = 3.0  # seconds that actors have to come back and hear of the end: longer than any is silent between two Hellos
ASTRAY = 10.0  # seconds for which one whose connection was lost is thought to be on its way back


@dataclass(frozen=True, slots=True)
class Stray:
    """An actor whose connection was lost, and when."""

    peer: bytes
    user: str
    since: float


@dataclass(slots=True)
class Farewell:
    """Times are in seconds of a clock that never goes back. strays, unaware: by session."""

    strays: OrderedDict[bytes, Stray] = field(default_factory=OrderedDict)  # lost first, first
    unaware: dict[bytes, Stray] = field(default_factory=dict)
    until: float = 0.0
    last: Stop = field(default_factory=lambda: Stop(""))
    epoch: int = 0

    def lost(self, actor: Actor, now: float) -> None:
        """Its connection is; it may be back over another."""
        self.strays[actor.session] = Stray(actor.peer, actor.user, now)
        self.strays.move_to_end(actor.session)
        while next(iter(self.strays.values())).since < now - ASTRAY:
            self.strays.popitem(last=False)

    def back(self, session: bytes) -> None:
        self.strays.pop(session, None)

    def dead(self, peer: bytes) -> None:
        """Its process has ended: it will not come back."""
        for astray in (self.strays, self.unaware):
            for session in [session for session, its in astray.items() if its.peer == peer]:
                del astray[session]

    def begin(self, last: Stop, epoch: int, actors: dict[bytes, Actor], now: float) -> None:
        """All who are here have been told, once."""
        self.last, self.epoch, self.until = last, epoch, now + MOMENT
        recent = {session: its for session, its in self.strays.items() if its.since >= now - ASTRAY}
        self.unaware = recent | {session: Stray(actor.peer, actor.user, now) for session, actor in actors.items()}

    def answer(self, event: Event) -> list[Effect]:
        """To what happens when the run is over."""
        match event:
            case Heard(peer, envelope, user=user):
                its = self.unaware.get(envelope.session)
                if its is not None and its.user != user:
                    return []  # it speaks for another
                if not isinstance(envelope.message, Bye):
                    return [Send(peer, Envelope(envelope.session, self.epoch, self.last))]
                self.unaware.pop(envelope.session, None)
            case Lost(peer, dead=True):
                self.dead(peer)
        return []

    def waits(self, now: float) -> bool:
        """Is it worth listening for more?"""
        return bool(self.unaware) and now < self.until
