"""The ROUTER that actors talk to, in frames, whose contents it never reads.

The one idea: the socket is the same whether the coordinator or a gateway process holds it, so this module knows neither
messages nor arrays; and every option that makes ZeroMQ safe (no silent drops, bounded queues, no waiting at close) is set
here and nowhere else.
"""

from __future__ import annotations

import resource
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import zmq

from shoal.protocol.codec import encode
from shoal.protocol.door import Door, News, ServerKeys, check_bind, unbound
from shoal.protocol.fetching import MOST
from shoal.protocol.messages import Envelope, Refused
from shoal.protocol.pulses import Pulses

ZERO_COPY = 65_536  # bytes of a payload from which on it is not copied: below, a copy is cheaper than the bookkeeping
SLACK = 65_536 + 4_096  # bytes of a header, beside the largest payload
PIECE = MOST + SLACK  # bytes of the largest message that a peer may send
QUEUED = 1_000  # small messages in either direction after which a peer counts as stuck; the core bounds models
HELD = 8 << 20  # bytes taken in from one stranger before it has to wait
PULSE = (800, 1_800)  # ms between two pings of a process of this machine, and until its connection is given up without an
# answer. ZeroMQ's own thread answers, also while Python computes in one call, and not if the process is stopped.
PULSE_AFAR = (2_500, 10_000)  # the same where the way may be slow: an answer waits behind arrays
PING = 800  # ms between two pings of an actor over TCP, so that something comes also while Python computes in one call there
IO_THREADS = 4
"""Threads of ZeroMQ: a cancelled timer costs a walk through all timers of its thread, with 4,000 connections a third of one."""
OVERHEARD = 4_096  # ZeroMQ's own events that are looked at in a turn
REVOKED = encode(Envelope(b"", 0, Refused("its key was revoked: the coordinator's user took it off the list", final=True)))
EVENT = struct.Struct("=Hi")  # a ZeroMQ event's kind, and its value
BEGAN, ENDED = zmq.EVENT_ACCEPTED, zmq.EVENT_DISCONNECTED  # of a connection; the value is its descriptor
FAILED = frozenset({zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL})


@dataclass(frozen=True, slots=True)
class Came:
    """A message: its frames without the routing id, uncopied. user: key that it came under; "" if no keys are asked for."""

    peer: bytes
    user: str
    frames: list[Any]


Entry: TypeAlias = Came | News


def opened(context: zmq.Context[zmq.Socket[bytes]], kind: int, largest: int) -> zmq.Socket[bytes]:
    """A socket with safe options. largest: bytes of the largest payload that the other end may send."""
    socket: zmq.Socket[bytes] = context.socket(kind)
    options = {
        zmq.LINGER: 0,
        zmq.SNDHWM: QUEUED,
        zmq.RCVHWM: QUEUED,
        zmq.MAXMSGSIZE: largest + SLACK,
        zmq.HANDSHAKE_IVL: 5_000,
        zmq.BACKLOG: 4_096,
        zmq.TCP_KEEPALIVE: 1,
        zmq.TCP_KEEPALIVE_IDLE: 30,
        zmq.TCP_KEEPALIVE_INTVL: 10,
        zmq.TCP_KEEPALIVE_CNT: 3,
    }
    for option, value in options.items():
        socket.setsockopt(option, value)
    return socket


def raise_descriptor_limit() -> None:
    """Let this process have as many descriptors as the system grants without asking: a connection takes one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS names a limit that it does not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Front:
    """The ROUTER at `address`, and the door of `keys`. Raises UserError if it cannot bind, or if other machines could reach it
    and no keys would be asked for. listener: descriptor that listens at `address` already; -1: there is none. largest: bytes
    of the largest payload that a peer may send."""

    def __init__(
        self, address: str, keys: ServerKeys | None, clock: Callable[[], float], listener: int = -1, largest: int = MOST
    ) -> None:
        check_bind(address, keys)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(IO_THREADS)
        self.socket = opened(self._context, zmq.ROUTER, largest)
        every, within = PULSE if address.startswith("ipc://") else PULSE_AFAR
        self.socket.setsockopt(zmq.HEARTBEAT_IVL, every)
        self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, within)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.USE_FD, listener)
        self.socket.setsockopt(zmq.IPV6, "[" in address)
        self.door = Door(self._context, self.socket, keys, clock) if keys else None
        if keys:
            self.socket.setsockopt(zmq.RCVHWM, max(2, HELD // PIECE))
        self.pulses = Pulses() if address.startswith("tcp://") else None
        self.counts = bool(keys or self.pulses)  # the beginning and end of each connection must be known before its messages
        counted = BEGAN | ENDED if self.counts else 0
        self._monitor = self._watched(zmq.EVENT_ACCEPT_FAILED | counted | (sum(FAILED) if keys else 0))
        self.full = False  # True if no descriptor is left for more connections
        self._heard: set[int] = set()  # kinds of ZeroMQ's own events since the last turn
        self.address = self._bind(address)

    def _watched(self, events: int) -> zmq.Socket[bytes]:
        """The socket that tells of these events, all of them: ZeroMQ's threads would wait at one that is full."""
        self.socket.monitor("inproc://front", events)
        monitor: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        monitor.setsockopt(zmq.RCVHWM, 0)
        monitor.connect("inproc://front")
        return monitor

    def _bind(self, address: str) -> str:
        try:
            self.socket.bind(address)
        except zmq.ZMQError as refused:
            self.close(0)
            raise unbound(address, refused) from None
        bound: str = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        if bound.startswith("ipc://"):
            Path(bound.removeprefix("ipc://")).chmod(0o600)
        return bound

    @property
    def bells(self) -> list[zmq.Socket[bytes]]:
        """Sockets to wait on, beside `socket`: they are readable if a peer asks to be let in, or a connection failed."""
        return [self._monitor, *([self.door.zap] if self.door else [])]

    # In

    def knocks(self) -> Iterator[News]:
        """Answer peers that ask to be let in. Yields what befell connections. Call it before `take`."""
        self._overhear()
        if self.door:
            for peer in self.door.answer():
                with suppress(zmq.ZMQError):  # the connection is lost, or takes nothing in any more
                    self.socket.send_multipart([peer, REVOKED], zmq.NOBLOCK)
                yield News("lost", "its key is not on the list any more", peer)
            while self.door.news:
                yield self.door.news.popleft()

    def take(self) -> Entry | None:
        """The next message, or why it may not pass; None if there is none now."""
        try:
            peer = self.socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None
        frames: list[Any] = []
        while not frames or frames[-1].more:  # `recv_multipart` would take twice as long
            frames.append(self.socket.recv(zmq.NOBLOCK, copy=False))
        if self._is_new(peer):
            self._hear()  # it may have been let in since the turn began: its beginning is told before its messages come
        if self.pulses is not None and peer not in self.pulses:
            with suppress(zmq.ZMQError):  # a peer of ZMTP 1, as what a browser sends is read: ZeroMQ tells no descriptor of it
                self.pulses.spoke(peer, frames[-1].get(zmq.SRCFD))
        user, wrong = self.door.judge(peer, frames) if self.door else ("", None)
        return wrong or Came(peer, user, frames)

    def silent(self, peer: bytes) -> float | None:
        """Return the seconds since anything came over the peer's connection, ZeroMQ's own answers included; None if that is not
        known, as with a unix socket."""
        return self.pulses.silent(peer) if self.pulses is not None else None

    # Out

    def send(self, peer: bytes, header: bytes | bytearray, payload: Any = None) -> str:
        """Send, and never wait. Returns "" or why the peer cannot be reached. A large payload is not copied: it must not
        change."""
        if self.door and not self.door.opens_to(peer):
            return "is not known by a key on the list"
        try:
            if payload is None:
                self.socket.send_multipart([peer, header], zmq.NOBLOCK)
            else:
                self.socket.send_multipart([peer, header], zmq.NOBLOCK | zmq.SNDMORE)
                self.socket.send(payload, zmq.NOBLOCK, copy=len(payload) < ZERO_COPY)
        except zmq.Again:
            return "takes nothing in any more"
        except zmq.ZMQError as refused:
            if refused.errno != zmq.EHOSTUNREACH:
                raise
            if self.door:
                self.door.forget(peer)
            return "lost its connection"
        return ""

    def close(self, seconds: float) -> None:
        """Close the socket, after at most `seconds` for its last messages to leave."""
        if self.door:
            self.door.close()
        self.socket.disable_monitor()
        self._monitor.close(0)
        self.socket.close(int(seconds * 1_000))
        self._context.term()

    # ZeroMQ's own events

    def _is_new(self, peer: bytes) -> bool:
        """Return whether this may be the first message of a connection that is counted."""
        return (self.pulses is not None and peer not in self.pulses) or (self.door is not None and not self.door.knows(peer))

    def _hear(self) -> None:
        """Take in the beginnings and ends of connections, and note which events there were."""
        with suppress(zmq.Again):
            for _ in range(OVERHEARD):
                kind, value = EVENT.unpack(self._monitor.recv_multipart(zmq.NOBLOCK)[0])
                self._heard.add(kind)
                for each in (self.door.callers if self.door else None, self.pulses):
                    if each is not None and kind == BEGAN:
                        each.began(value)
                    elif each is not None and kind == ENDED:
                        each.ended(value)

    def _overhear(self) -> None:
        """Take in ZeroMQ's own events, and report those that befell connections."""
        self._hear()
        seen, self._heard = self._heard, set()
        self.full = zmq.EVENT_ACCEPT_FAILED in seen
        if self.door and self.full:
            self.door.full()
        if self.door and seen & FAILED:
            self.door.failed()
