"""The wires: a `Hub` (the coordinator's end) and a `Line` (an actor's).

The one idea: the socket carries small header frames, each of which holds one message or many, and behind a header at most one
raw payload frame: the arrays of its last message. Many small messages in one frame wake the other side once.

Arrays larger than INLINE go piece by piece (fetching.py) over a line of their own, so that no message ever waits behind them.
That line leads to the same address; the coordinator's end tells the two lines apart only by the messages on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import zmq

from shoal.protocol.budget import Buckets
from shoal.protocol.codec import MAX_HEADER, MAX_WELCOME, decode_all, encode, encode_arrays
from shoal.protocol.door import ClientKeys, ServerKeys, check_connect, dress, over_budget
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.fetching import MOST
from shoal.protocol.front import EVENT, PING, Came, Entry, Front, opened
from shoal.protocol.front import ZERO_COPY as ZERO_COPY
from shoal.protocol.messages import Envelope
from shoal.protocol.value import value
from shoal.protocol.wake import Wake as Wake

SMALL = 49_152  # bytes of arrays that go in the header frame, behind their message, at most: a copy costs less than a frame
INLINE = 1 << 18  # bytes of arrays that go with their message, at most; larger arrays are fetched
NEAR = 1 << 62  # INLINE where the other end is in this very process: all arrays go with their message
DRAIN = 256  # messages taken in a turn, at most, so that the clock is looked at in between
KNOCK_AGAIN = (0.5, 15.0)  # seconds until a line that was refused tries again: at first, and at most (doubled each time)
NONSENSE = 64  # bytes of a frame that cannot be read, which count as a message
FAREWELL = 0.5  # seconds that the last messages of a coordinator have to leave
WATCHED = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


@value
class Part:
    """The bytes from `first` to before `last` of an array of which other peers get parts too."""

    whole: npt.NDArray[np.uint8]
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first


Payload: TypeAlias = npt.NDArray[Any] | bytes | Part


def bytes_of(payload: Payload) -> Any:
    return payload.whole[payload.first : payload.last].data if isinstance(payload, Part) else payload


@value
class Arrival:
    """A message that came in, or something that befell the line.

    peer: routing id of the sender; empty at an actor. payload: the message's arrays; None: it has none.
    envelope: the message; None if there is none to read: `fault` then says why, and `kind` in a word. "malformed": a message
    could not be read. "lost": the peer cannot be reached. "opened": this line has a new connection, so that messages on the
    last one are lost, or the first connection of a line that keeps nothing. "silent": `fault` is the number of seconds since
    anything came over the peer's connection. Any other kind: `fault` is a sentence for a person.
    user: proven public key that the message came under; "" if no keys are asked for.
    """

    peer: bytes
    envelope: Envelope | None
    payload: memoryview | None
    fault: str = ""
    user: str = ""
    kind: str = "malformed"


class Waiting:
    """A wait that ends when a socket has something, another thread calls `wake`, or the time is up."""

    def __init__(self) -> None:
        self.wake = Wake()
        self.poller = zmq.Poller()
        self.poller.register(self.wake.out, zmq.POLLIN)
        self._still: set[Any] = set()  # sockets in which the last wait found nothing, and nobody has looked since

    def wait(self, seconds: float) -> None:
        ready = [ready for ready, _ in self.poller.poll(max(0, int(seconds * 1_000)))]
        if self.wake.out in ready:
            self.wake.clear()
        self._still = {socket for socket, _ in self.poller.sockets}.difference(ready)

    def spares(self, socket: Any) -> bool:
        """Return whether the last wait found nothing in this socket, so that a look costs nothing; True once after a wait."""
        if socket not in self._still:
            return False
        self._still.discard(socket)
        return True


def read(peer: bytes, user: str, frames: list[Any]) -> Iterator[Arrival]:
    """The messages in one or two frames: the first holds messages, a second one the arrays of the last message. Buffers are
    not copied."""
    try:
        if not 1 <= len(frames) <= 2:
            raise ProtocolError(f"a message has one frame or two, not {len(frames)}")
        said = decode_all(frames[0])
        if len(frames) == 2 and said[-1][1] is not None:
            raise ProtocolError("a message has arrays in its header frame or in a second frame, not in both")
    except ProtocolError as wrong:
        yield Arrival(peer, None, None, str(wrong), user)
        return
    for envelope, arrays in said[:-1]:
        yield Arrival(peer, envelope, None if arrays is None else memoryview(arrays), "", user)
    envelope, arrays = said[-1]
    last = frames[1] if len(frames) == 2 else None if arrays is None else memoryview(arrays)
    yield Arrival(peer, envelope, last, "", user)


class Meter:
    """Reads frames within the budgets of their keys: a frame may hold thousands of messages, so they are counted here. A key
    whose budget is spent has its frames dropped unread. The coordinator's own actors have no budget."""

    def __init__(self, keys: ServerKeys | None, clock: Callable[[], float]) -> None:
        self._keys, self._clock = keys, clock
        self._buckets = Buckets(keys.budget) if keys else None

    def read(self, peer: bytes, user: str, frames: list[Any]) -> Iterator[Arrival]:
        keys, buckets, now = self._keys, self._buckets, self._clock()
        if keys is None or buckets is None or user == keys.own.public:
            yield from read(peer, user, frames)
        elif not buckets.take(user, 0, now):
            yield Arrival(b"", None, None, over_budget(keys.allowed.name(user)), kind="budget")
        else:
            arrivals = list(read(peer, user, frames))
            many = len(arrivals) if arrivals[-1].envelope else max(1.0, len(frames[0]) / NONSENSE)
            buckets.charge(user, many - 1, now)
            yield from arrivals

    def arrivals(self, entry: Entry) -> Iterator[Arrival]:
        if isinstance(entry, Came):
            return self.read(entry.peer, entry.user, [frame.buffer for frame in entry.frames])
        return iter([Arrival(entry.peer, None, None, entry.text, kind=entry.kind)])


class Outbox:
    """Messages that are said and have not left. They leave in as few frames as they fit, because each frame wakes a peer."""

    def __init__(self) -> None:
        self.said: dict[bytes, bytearray] = {}

    def add(self, peer: bytes, envelope: Envelope, payload: Payload | None) -> list[tuple[bytearray, Payload | None]]:
        """Add a message. Returns (header, payload) pairs that must leave now: a full header, and arrays too large for one."""
        header = encode(envelope)
        if small := payload is not None and len(payload) <= SMALL:
            header += encode_arrays(bytes_of(payload))
        said = self.said.setdefault(peer, bytearray())
        leaving: list[tuple[bytearray, Payload | None]] = []
        if len(said) + len(header) > MAX_HEADER:
            leaving.append((said, None))
            said = self.said[peer] = bytearray()
        said += header
        if payload is not None and not small:
            leaving.append((self.said.pop(peer), payload))
        return leaving

    def rest(self) -> dict[bytes, bytearray]:
        said, self.said = self.said, {}
        return said


class Hub:
    """The coordinator's end, if actors connect to it directly. Used by one thread; any thread may call `wake`.

    keys: None: only this machine's actors can be let in. inline: bytes of arrays that go with their message, at most. listener,
    largest: as of a Front.
    """

    inline = INLINE

    def __init__(
        self,
        address: str,
        keys: ServerKeys | None = None,
        clock: Callable[[], float] = time.monotonic,
        listener: int = -1,
        largest: int = MOST,
    ) -> None:
        self.front = Front(address, keys, clock, listener, largest)
        self.address = self.front.address
        self._meter = Meter(keys, clock)
        self._outbox = Outbox()
        self._waiting = Waiting()
        self.wake = self._waiting.wake
        for socket in (self.front.socket, *self.front.bells):
            self._waiting.poller.register(socket, zmq.POLLIN)

    def wait(self, seconds: float) -> None:
        """Wait until there is something to take in, `wake` is called, or `seconds` are over."""
        self._waiting.wait(seconds)

    def drain(self) -> Iterator[Arrival]:
        """Arrivals, of at most DRAIN messages. A message that cannot be read is an arrival with a fault."""
        if self.front.counts or not all(map(self._waiting.spares, self.front.bells)):
            for knock in self.front.knocks():
                yield from self._meter.arrivals(knock)
        if self._waiting.spares(self.front.socket):
            return
        came = 0
        while came < DRAIN and (entry := self.front.take()) is not None:
            came += 1  # also if nothing of the frame is handed on
            for arrival in self._meter.arrivals(entry):
                yield arrival
                came += 1

    def send(self, peer: bytes, envelope: Envelope, payload: Payload | None = None) -> str:
        """Send at once; never wait. Returns "" or why the peer cannot be reached. The payload must not change afterwards."""
        return self._send(peer, encode(envelope), payload)

    def say(self, peer: bytes, envelope: Envelope, payload: Payload | None = None) -> str:
        """Send at the next `flush` at the latest; else as `send`."""
        return next(filter(None, (self._send(peer, *one) for one in self._outbox.add(peer, envelope, payload))), "")

    def _send(self, peer: bytes, header: bytes | bytearray, payload: Payload | None) -> str:
        return self.front.send(peer, header, None if payload is None else bytes_of(payload))

    def flush(self) -> list[tuple[bytes, str]]:
        """Send everything said. Returns (peer, why) for each peer that cannot be reached."""
        sent = ((peer, self.front.send(peer, said)) for peer, said in self._outbox.rest().items() if said)
        return [(peer, why) for peer, why in sent if why]

    def silent(self, peer: bytes) -> float | None:
        """Return the seconds since anything came over the peer's connection; None if that is not known, or told later."""
        return self.front.silent(peer)

    def close(self) -> None:
        self.front.close(FAREWELL)
        self.wake.close()


class Line:
    """An actor's end. Used by one thread; any thread may call `wake`. Connecting never fails at once: ZeroMQ tries on.

    If the coordinator refuses this actor's key, the line tries again with a new socket, after KNOCK_AGAIN seconds: ZeroMQ
    itself would not try a second time. beside: another line of this actor, which waits for both and is closed last. A line
    beside another keeps nothing for a connection that is not there yet: a question on one connection is not asked on the next.
    largest: bytes of the largest payload that may come.
    """

    def __init__(
        self,
        address: str,
        keys: ClientKeys | None = None,
        clock: Callable[[], float] = time.monotonic,
        beside: Line | None = None,
        largest: int = MAX_WELCOME,
    ) -> None:
        check_connect(address, keys)
        self.address, self._keys, self._clock, self._beside = address, keys, clock, beside
        self._largest = largest
        self.context: zmq.Context[zmq.Socket[bytes]] = beside.context if beside else zmq.Context()
        self._outbox = Outbox()
        self._waiting: Waiting = beside._waiting if beside else Waiting()
        self.wake = self._waiting.wake
        self._pause = KNOCK_AGAIN[0]
        self._again_at = float("inf")
        self._noted: dict[int, float] = {}
        self._opened = 0
        self._connected = False  # True since the first connection
        self._open()

    def _open(self) -> None:
        self._opened += 1
        self.socket = opened(self.context, zmq.DEALER, self._largest)
        self.socket.setsockopt(zmq.IPV6, "[" in self.address)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 100)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 5_000)
        self.socket.setsockopt(zmq.IMMEDIATE, self._beside is not None)
        if self._beside is None and self.address.startswith("tcp://"):
            self.socket.setsockopt(zmq.HEARTBEAT_IVL, PING)
            self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 0)  # an answer that is late is no reason to connect anew
        if self._keys:
            dress(self.socket, self._keys)
        self._monitor: zmq.Socket[bytes] = self.socket.get_monitor_socket(WATCHED, f"inproc://line-{id(self)}-{self._opened}")
        for socket in (self.socket, self._monitor):
            self._waiting.poller.register(socket, zmq.POLLIN)
        try:
            self.socket.connect(self.address)
        except zmq.ZMQError as refused:
            self.close()
            raise UserError(f"cannot connect to {self.address} ({refused}): give tcp://HOST:PORT or ipc://PATH") from None

    def _shut(self, seconds: float) -> None:
        for socket in (self.socket, self._monitor):
            self._waiting.poller.unregister(socket)
        self.socket.disable_monitor()
        self._monitor.close(0)
        self.socket.close(int(seconds * 1_000))

    def wait(self, seconds: float) -> None:
        """Wait until there is something to take in, `wake` is called, or `seconds` are over."""
        self._waiting.wait(seconds)

    def drain(self) -> Iterator[Arrival]:
        """Arrivals, of at most DRAIN messages. A message that cannot be read is an arrival with a fault."""
        nothing = self._waiting.spares(self.socket)
        yield from self._overheard(look=not (self._waiting.spares(self._monitor) and nothing))
        if nothing:
            return
        for _ in range(DRAIN):
            try:
                frames: list[Any] = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._pause = KNOCK_AGAIN[0]
            yield from read(b"", "", [frame.buffer for frame in frames])

    def send(self, envelope: Envelope, payload: Payload | None = None) -> bool:
        """Send at once; never wait. Returns False if the queue is full (messages that matter are said again). The payload must
        not change afterwards."""
        return self._send(encode(envelope), payload)

    def say(self, envelope: Envelope, payload: Payload | None = None) -> None:
        """Send at the next `flush` at the latest; else as `send`."""
        for one in self._outbox.add(b"", envelope, payload):
            self._send(*one)

    def flush(self) -> None:
        for said in self._outbox.rest().values():
            self._send(said, None)

    def _send(self, header: bytes | bytearray, payload: Payload | None) -> bool:
        try:
            if payload is None:
                self.socket.send(header, zmq.NOBLOCK)
            else:
                self.socket.send(header, zmq.NOBLOCK | zmq.SNDMORE)
                self.socket.send(bytes_of(payload), zmq.NOBLOCK, copy=len(payload) < ZERO_COPY)
        except zmq.Again:
            return False
        return True

    def close(self, seconds: float = 0.0) -> None:
        """Close the line, after at most `seconds` for its last messages to leave."""
        self._shut(seconds)
        if self._beside is None:
            self.context.term()
            self.wake.close()

    # Being refused

    def _overheard(self, look: bool) -> Iterator[Arrival]:
        """The arrivals about the connection itself. look: False if nothing did; only the time of the next try is looked at."""
        now = self._clock()
        while look and self._monitor.poll(0):
            event = EVENT.unpack(self._monitor.recv_multipart()[0])[0]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                if self._connected or self._beside:
                    yield Arrival(b"", None, None, kind="opened")
                self._connected = True
                continue
            if event != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and self._again_at == float("inf"):
                self._again_at = now + self._pause
                self._pause = min(2 * self._pause, KNOCK_AGAIN[1])
            yield from self._note(event, now)
        if now >= self._again_at:
            self._again_at = float("inf")
            self._shut(0.0)
            self._open()

    def _note(self, event: int, now: float) -> Iterator[Arrival]:
        """An arrival for a person, for each kind of event once in 30 s at most."""
        if now - self._noted.get(event, float("-inf")) >= 2 * KNOCK_AGAIN[1]:
            self._noted[event] = now
            yield Arrival(b"", None, None, f"{self.address} {self._meaning(event)}; trying on", kind="access")

    def _meaning(self, event: int) -> str:
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH and self._keys:
            many = "(or the key has too many connections there; its log says which)"
            return f"does not let this key in: on its machine, type `shoal keys allow {self._keys.pair.public}` {many}"
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            return "asks for no key" if self._keys else "asks for a key: give --key NAME --server PUBLIC"
        if self._keys is None:
            return "ended the connection; if it asks for a key, give --key NAME --server PUBLIC"
        return "does not prove to be the coordinator that --server names, or ended the connection too early"
