"""The wires: a `Hub` (the coordinator's end) and a `Line` (an actor's).

The one idea: what goes over the socket is one small header frame, which holds one message or many, and at most one raw
payload frame: the arrays of the last. Many small messages in one cost one waking of the other side.

Arrays larger than INLINE go piece by piece (fetching.py) over a line of their own, so that no word ever waits behind them. It
leads to the same address; the coordinator's end tells lines apart by nothing but what is said on them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import zmq
from zmq.utils.monitor import recv_monitor_message

from shoal.protocol.codec import MAX_HEADER, MAX_WELCOME, decode_all, encode, encode_arrays
from shoal.protocol.door import ClientKeys, ServerKeys, check_connect, dress
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.front import ZERO_COPY as ZERO_COPY
from shoal.protocol.front import Came, Entry, Front, Gone, opened
from shoal.protocol.messages import Envelope

SMALL = 16_384  # bytes of arrays that go in the header frame, behind their message: a copy costs less than a frame
INLINE = 1 << 18  # bytes of arrays that go with their message at most; more are fetched
NEAR = 1 << 62  # the same where the other end is in this very process, and nothing has far to go
DRAIN = 256  # messages taken in a turn, so that the clock is looked at in between
KNOCK_AGAIN = (0.5, 15.0)  # seconds until a line that was refused tries again, and the most that grows to
FAREWELL = 0.5  # seconds that the last words of a coordinator have to leave
WATCHED = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of an array that others get too."""

    whole: npt.NDArray[np.uint8]
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first


Payload: TypeAlias = npt.NDArray[Any] | bytes | Part


def bytes_of(payload: Payload) -> Any:
    return payload.whole[payload.first : payload.last].data if isinstance(payload, Part) else payload


@dataclass(frozen=True, slots=True)
class Arrival:
    """One message in. peer is empty at an actor. envelope is None where fault says why there is none to read, and kind
    in a word: it was "malformed", the sender is "lost", what was said on the line is lost ("opened": it is another connection
    than before, or the first of a line that keeps nothing), or (a whole sentence for a person) whatever else befell the line.

    user: the public key that it came under, proven; "" where none is asked for.
    """

    peer: bytes
    envelope: Envelope | None
    payload: memoryview | None
    fault: str = ""
    user: str = ""
    kind: str = "malformed"


class Wake:
    """Ends another thread's wait: a byte in a pipe."""

    def __init__(self) -> None:
        self.out, self._in = os.pipe()
        self._open = threading.Lock()  # held for ever once this is closed: a number that is closed may be another's
        os.set_blocking(self.out, False)
        os.set_blocking(self._in, False)

    def __call__(self) -> None:
        if not self._open.acquire(blocking=False):
            return  # closed, or being woken by another thread this very moment
        try:
            os.write(self._in, b".")
        except BlockingIOError:
            pass  # as awake as can be
        finally:
            self._open.release()

    def clear(self) -> None:
        try:
            os.read(self.out, 4_096)
        except BlockingIOError:
            return

    def close(self) -> None:
        self._open.acquire()
        os.close(self.out)
        os.close(self._in)


class Waiting:
    """Ends when a socket has something, another thread calls `wake`, or the time is up."""

    def __init__(self) -> None:
        self.wake = Wake()
        self.poller = zmq.Poller()
        self.poller.register(self.wake.out, zmq.POLLIN)

    def wait(self, seconds: float) -> None:
        for ready, _ in self.poller.poll(max(0, int(seconds * 1_000))):
            if ready == self.wake.out:
                self.wake.clear()


def read(peer: bytes, user: str, frames: list[Any]) -> Iterator[Arrival]:
    """What frames say: the first holds messages, a second one the arrays of the last. Buffers are not copied."""
    try:
        if not 1 <= len(frames) <= 2:
            raise ProtocolError(f"a message has one frame or two, not {len(frames)}")
        said = decode_all(frames[0])
        if len(frames) == 2 and said[-1][1] is not None:
            raise ProtocolError("a message with arrays in two places")
    except ProtocolError as wrong:
        yield Arrival(peer, None, None, str(wrong), user)
        return
    for envelope, arrays in said[:-1]:
        yield Arrival(peer, envelope, None if arrays is None else memoryview(arrays), "", user)
    envelope, arrays = said[-1]
    last = frames[1] if len(frames) == 2 else None if arrays is None else memoryview(arrays)
    yield Arrival(peer, envelope, last, "", user)


def arrivals_of(entry: Entry) -> Iterator[Arrival]:
    match entry:
        case Came(peer, user, frames):
            return read(peer, user, [frame.buffer for frame in frames])
        case Gone(peer, why):
            return iter([Arrival(peer, None, None, why, kind="lost")])
        case news:
            return iter([Arrival(b"", None, None, news.text, kind=news.kind)])


class Outbox:
    """What was said and has not left: it leaves in as few messages as it fits, because each wakes somebody."""

    def __init__(self) -> None:
        self.said: dict[bytes, bytearray] = {}

    def add(self, peer: bytes, envelope: Envelope, payload: Payload | None) -> list[tuple[bytearray, Payload | None]]:
        """What has to leave now: arrays that do not fit in a header, and what would not fit beside them."""
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
    """The coordinator's end, where actors come to it directly. Used by one thread; `wake` by any.

    keys: without them only this machine's own can be let in. inline: bytes of arrays that go with their message at most.
    """

    inline = INLINE

    def __init__(self, address: str, keys: ServerKeys | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.front = Front(address, keys, clock)
        self.address = self.front.address
        self._outbox = Outbox()
        self._waiting = Waiting()
        self.wake = self._waiting.wake
        for socket in (self.front.socket, *self.front.bells):
            self._waiting.poller.register(socket, zmq.POLLIN)

    def wait(self, seconds: float) -> None:
        """Until there is something to take in, `wake` is called, or the time is up."""
        self._waiting.wait(seconds)

    def drain(self) -> Iterator[Arrival]:
        """What has arrived, at most a turn's worth. A message that cannot be read is an arrival with a fault."""
        for knock in self.front.knocks():
            yield from arrivals_of(knock)
        for _ in range(DRAIN):
            if (entry := self.front.take()) is None:
                return
            yield from arrivals_of(entry)

    def send(self, peer: bytes, envelope: Envelope, payload: Payload | None = None) -> str:
        """At once. Never waits. Returns "" or why the peer cannot be reached. The payload must not change afterwards."""
        return self._send(peer, encode(envelope), payload)

    def say(self, peer: bytes, envelope: Envelope, payload: Payload | None = None) -> str:
        """The same, at the next `flush` at the latest."""
        return next(filter(None, (self._send(peer, *one) for one in self._outbox.add(peer, envelope, payload))), "")

    def _send(self, peer: bytes, header: bytes | bytearray, payload: Payload | None) -> str:
        return self.front.send(peer, header, None if payload is None else bytes_of(payload))

    def flush(self) -> list[tuple[bytes, str]]:
        """Everything said leaves. Returns who cannot be reached, and why."""
        sent = ((peer, self.front.send(peer, said)) for peer, said in self._outbox.rest().items() if said)
        return [(peer, why) for peer, why in sent if why]

    def close(self) -> None:
        self.front.close(FAREWELL)
        self.wake.close()


class Line:
    """An actor's end. Connecting never fails at once: ZeroMQ tries for as long as it takes. Used by one thread; `wake` by any.

    A coordinator that does not let our key in is asked again, with a new socket, less and less often: ZeroMQ itself would
    not try a second time. beside: another line of this actor, which waits for both and is closed last. A line beside another
    keeps nothing for a connection that is not there yet: what was asked for over one is not sent over the next as well.
    """

    def __init__(
        self,
        address: str,
        keys: ClientKeys | None = None,
        clock: Callable[[], float] = time.monotonic,
        beside: Line | None = None,
    ) -> None:
        check_connect(address, keys)
        self.address, self._keys, self._clock, self._beside = address, keys, clock, beside
        self.context: zmq.Context[zmq.Socket[bytes]] = beside.context if beside else zmq.Context()
        self._outbox = Outbox()
        self._waiting: Waiting = beside._waiting if beside else Waiting()
        self.wake = self._waiting.wake
        self._pause = KNOCK_AGAIN[0]
        self._again_at = float("inf")
        self._noted: dict[int, float] = {}
        self._opened = 0
        self._connected = False  # it was, once
        self._open()

    def _open(self) -> None:
        self._opened += 1
        self.socket = opened(self.context, zmq.DEALER, MAX_WELCOME)
        self.socket.setsockopt(zmq.IPV6, "[" in self.address)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 100)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 5_000)
        self.socket.setsockopt(zmq.IMMEDIATE, self._beside is not None)
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
        """Until there is something to take in, `wake` is called, or the time is up."""
        self._waiting.wait(seconds)

    def drain(self) -> Iterator[Arrival]:
        """What has arrived, at most a turn's worth. A message that cannot be read is an arrival with a fault."""
        yield from self._overheard()
        for _ in range(DRAIN):
            try:
                frames: list[Any] = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._pause = KNOCK_AGAIN[0]
            yield from read(b"", "", [frame.buffer for frame in frames])

    def send(self, envelope: Envelope, payload: Payload | None = None) -> bool:
        """At once. Never waits; False where the queue is full (what matters is said again). The payload must not change
        afterwards."""
        return self._send(encode(envelope), payload)

    def say(self, envelope: Envelope, payload: Payload | None = None) -> None:
        """The same, at the next `flush` at the latest."""
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
        """Waits at most so long for what was said to leave."""
        self._shut(seconds)
        if self._beside is None:
            self.context.term()
            self.wake.close()

    # Being refused

    def _overheard(self) -> Iterator[Arrival]:
        now = self._clock()
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)["event"]
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
        """For a person, once in a while."""
        if now - self._noted.get(event, float("-inf")) >= 2 * KNOCK_AGAIN[1]:
            self._noted[event] = now
            yield Arrival(b"", None, None, f"{self.address} {self._meaning(event)}; trying on", kind="access")

    def _meaning(self, event: int) -> str:
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH and self._keys:
            return f"does not let this key in: there, type `shoal keys allow {self._keys.pair.public}`"
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            return "asks for no key" if self._keys else "asks for a key: give --key NAME --server PUBLIC"
        if self._keys is None:
            return "ended the connection; if it asks for a key, give --key NAME --server PUBLIC"
        return "does not prove to be the coordinator that --server names, or ended the connection too early"
