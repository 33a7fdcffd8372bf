"""The simulated network, as ZeroMQ shows it: connections that keep order while they live and lose everything when they die.

The one idea: an actor's socket never tells its actor that the connection is a new one. The socket keeps the actor's messages
meanwhile, the coordinator that answers at the address next gets them, and that coordinator sees an unknown peer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import TYPE_CHECKING, Any, TypeAlias

from shoal.protocol.codec import decode, encode
from shoal.protocol.errors import ProtocolError
from shoal.protocol.messages import Envelope
from shoal.simulation.setting import Weather

if TYPE_CHECKING:
    from shoal.simulation.actors import Lane, Life
    from shoal.simulation.hub import Hub

QUEUED = 1_000  # messages that a socket keeps while its peer is not there
CODED = 0.02  # share of messages that travel as bytes
NEVER = float("inf")
PINGS = 0.4  # seconds between two pings of a process, in parts of the time after which a silent connection is told of

Act: TypeAlias = Callable[[Any], None]


class Timeline:
    """Acts by the time when they are due, and the one clock, in seconds. Acts of one time come in the order they were made."""

    def __init__(self, rng: Random) -> None:
        self.now = 0.0
        self.stopped = False
        self.events = 0  # events that cores took, and effects that were carried out
        self.random = rng.random
        self._due: list[tuple[float, int, Act, Any]] = []
        self._made = 0

    def at(self, when: float, act: Act, what: Any = None) -> None:
        self._made += 1
        heappush(self._due, (when, self._made, act, what))

    def run(self, most: int) -> None:
        """Do one act after the other until `stopped` is set, no act is due, or `most` acts are done."""
        due, pop = self._due, heappop
        while due and most and not self.stopped:
            most -= 1
            self.now, _, act, what = pop(due)
            act(what)


class Process:
    """A process with a clock of its own. It can be frozen: acts that come meanwhile wait, in order."""

    def __init__(self, time: Timeline, offset: float, turn: float) -> None:
        self.time, self.offset, self.turn = time, offset, turn
        self.gone = False
        self.frozen = False
        self.frozen_at = 0.0
        self._thaws_at = 0.0
        self._waiting: list[tuple[Act, Any]] = []
        time.at(time.now + turn * time.random(), self._ticks)

    def clock(self) -> float:
        return self.time.now + self.offset

    def tick(self) -> None:
        """Called every `turn` seconds, after the messages that waited in the process's socket."""
        raise NotImplementedError

    def freeze(self, seconds: float) -> None:
        if not self.frozen:
            self.frozen, self.frozen_at = True, self.time.now
        self._thaws_at = max(self._thaws_at, self.time.now + seconds)
        self.time.at(self._thaws_at, self._thaw)

    def thaw(self) -> None:
        self._thaws_at = self.time.now
        self._thaw()

    def later(self, act: Act, what: Any) -> None:
        """Keep an act that comes while the process is frozen."""
        self._waiting.append((act, what))

    def _thaw(self, _: None = None) -> None:
        if self.time.now < self._thaws_at:
            return
        self.frozen = False
        waiting, self._waiting = self._waiting, []
        for act, what in waiting:
            act(what)

    def _ticks(self, _: None) -> None:
        if self.gone:
            return
        if not self.frozen:
            self.tick()
        self.time.at(self.time.now + self.turn, self._ticks)


class Connection:
    """A life of a connection. peer: its name at the coordinator's socket. until: the time after which nothing arrives.
    held: the time from which on nothing arrives at the coordinator, and the time at which all of it does."""

    __slots__ = ("down_at", "held", "life", "peer", "until", "up_at")

    def __init__(self, peer: bytes, life: Life | Lane) -> None:
        self.peer, self.life = peer, life
        self.until = NEVER
        self.held = (0.0, 0.0)
        self.up_at = self.down_at = 0.0  # the time at which the last message in each direction arrives


class Wire:
    """The connections to the one address. hub: the coordinator that answers there now; None if there is none.

    pulse: seconds until the socket gives up a connection without an answer; NEVER: it asks for none. hush: seconds without
    anything over a connection that its hub wants to know of; 0: the socket cannot tell (a unix socket).
    """

    def __init__(self, time: Timeline, weather: Weather, rng: Random, pulse: float, hush: float) -> None:
        self.time, self.weather, self.rng, self.pulse, self.hush = time, weather, rng, pulse, hush
        self.hub: Hub | None = None
        self.wild, self.delay = weather.wild, weather.delay
        self.peers: dict[bytes, Connection] = {}  # connections that the coordinator's socket takes for living
        self._named = 0

    # Connections

    def connect(self, life: Life | Lane) -> None:
        """Make a new connection, on which waiting messages of the actor's socket go out. If no coordinator answers, try again
        0.02 to 0.2 s later."""
        if life.gone or life.connection is not None:
            return
        if self.hub is None:
            self.time.at(self.time.now + self.rng.uniform(0.02, 0.2), self.connect, life)
            return
        self._named += 1
        life.connection = connection = Connection(b"peer%d" % self._named, life)
        self.peers[connection.peer] = connection
        if life.connected:
            life.opened()
        life.connected = True
        waiting, life.outbox = life.outbox, []
        for envelope, payload in waiting:
            self.up(life, envelope, payload)

    def cut(self, life: Life, away: float) -> None:
        """Cut both of the actor's connections; new ones follow `away` seconds later."""
        self.cut_line(life, away)
        self.cut_line(life.lane, away)

    def cut_line(self, life: Life | Lane, away: float) -> None:
        """Cut a connection; another follows `away` seconds later. Messages in flight are lost, or all but their first part."""
        if (connection := life.connection) is None:
            return
        life.connection = None
        connection.until = self.time.now + self.rng.choice((0.0, 0.0, self.weather.delay / 2))
        noticed = self.rng.choice((0.0, 0.05, 1.0, 60.0, 60.0))
        self.time.at(self.time.now + min(noticed, self.pulse), self._notice, connection.peer)
        self.time.at(self.time.now + away, self.connect, life)

    def stall(self, life: Life, seconds: float) -> None:
        """Hold back all messages for `seconds`, in one direction or both; then all arrive."""
        if seconds > self.pulse:
            self.time.at(self.time.now + self.pulse, self._silent, life)
        connection = self.rng.choice((life.connection, life.lane.connection))
        if connection is None:
            return
        way = self.rng.choice(("up", "down", "both"))
        if way != "down":
            before, until = connection.held
            connection.held = (self.time.now if until < self.time.now else before, max(until, self.time.now + seconds))
            connection.up_at = max(connection.up_at, self.time.now + seconds)
        if way != "up":
            connection.down_at = max(connection.down_at, self.time.now + seconds)

    def _silent(self, life: Life) -> None:
        self.cut(life, 0.01)

    def silent(self, peer: bytes) -> float | None:
        """Return the seconds since anything came over a connection, pings included; None if the socket cannot tell."""
        connection, now = self.peers.get(peer), self.time.now
        if not self.hush or connection is None:
            return None
        since, life = min(now, connection.until), connection.life
        if connection.held[1] > now:
            since = min(since, connection.held[0])
        if life.frozen and not life.locked:
            since = min(since, life.frozen_at)
        return now - since + PINGS * self.hush * self.time.random()

    def _notice(self, peer: bytes) -> None:
        self.peers.pop(peer, None)

    # Messages

    def up(self, life: Life | Lane, envelope: Envelope, payload: Any) -> None:
        """Send to the coordinator. While there is no connection, a line that keeps messages keeps this one; others lose it."""
        connection = life.connection
        if connection is None:
            if life.keeps and len(life.outbox) < QUEUED:
                life.outbox.append((envelope, payload))
            return
        time, item = self.time, (connection, envelope, payload, self.hub)
        when = time.now + self.delay * time.random()
        if when < connection.up_at:
            when = connection.up_at
        if self.wild:
            for one in self._wild_times(when):
                time.at(one, self._arrive_up, item)
        else:
            connection.up_at = when
            time.at(when, self._arrive_up, item)

    def down(self, peer: bytes, envelope: Envelope, payload: Any) -> str:
        """Send to an actor. Returns "", or why the message cannot be sent, as the socket does for a peer known to be gone."""
        connection = self.peers.get(peer)
        if connection is None:
            return "cannot be reached"
        time, item = self.time, (connection, envelope, payload)
        when = time.now + self.delay * time.random()
        if when < connection.down_at:
            when = connection.down_at
        if self.wild:
            for one in self._wild_times(when):
                time.at(one, self._arrive_down, item)
        else:
            connection.down_at = when
            time.at(when, self._arrive_down, item)
        return ""

    def _wild_times(self, when: float) -> tuple[float, ...]:
        """The times at which a message arrives that may be lost, come twice, or be overtaken by others; () if it is lost."""
        chance, weather = self.time.random(), self.weather
        if chance < weather.lost:
            return ()
        if chance < weather.lost + weather.twice:
            return (when, when + 2 * self.time.random())
        if chance < weather.lost + weather.twice + weather.late:
            return (when + self.time.random(),)
        return (when,)

    def _arrive_up(self, item: tuple[Connection, Envelope, Any, Hub]) -> None:
        connection, envelope, payload, hub = item
        if self.time.now > connection.until or hub is not self.hub:
            return
        if hub.frozen:
            hub.later(self._arrive_up, item)
        elif self.time.random() >= CODED:
            hub.hear(connection.peer, envelope, payload, connection.life.user)
        elif coded := self._coded(envelope):
            hub.hear(connection.peer, coded, payload, connection.life.user)

    def _arrive_down(self, item: tuple[Connection, Envelope, Any]) -> None:
        connection, envelope, payload = item
        life = connection.life
        if self.time.now > connection.until or life.gone:
            return
        if life.frozen:
            life.later(self._arrive_down, item)
        elif self.time.random() >= CODED:
            life.hear(envelope, payload)
        elif coded := self._coded(envelope):
            life.hear(coded, payload)

    def _coded(self, envelope: Envelope) -> Envelope | None:
        """The envelope that the other end reads from the real bytes; None if the bytes are damaged."""
        raw = bytearray(encode(envelope))
        if self.wild and self.time.random() < 0.2:
            raw[self.rng.randrange(len(raw))] ^= 1 << self.rng.randrange(8)
            with contextlib.suppress(ProtocolError):  # no other error; damage that reads as a message, TCP's checksum caught
                decode(bytes(raw))
            return None
        return decode(bytes(raw))
