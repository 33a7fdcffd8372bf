"""The coordinator's end if strangers can reach it: a `Hub` to its owner, whose socket lives in another process (`gate.py`).

The one idea: the process that faces strangers may die at any time, and that costs a reconnect: it is started again at the same
address, its peers are reported lost, and they come back by themselves.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import astuple
from typing import Any, TypeVar

import zmq

from shoal.protocol.codec import encode
from shoal.protocol.door import PEERS, ServerKeys, check_bind, unbound
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.front import PIECE, SLACK, ZERO_COPY
from shoal.protocol.gate import CONFIG, FAREWELL, KEEP, KEPT, PART, PROBE, SEND, SEND_KEPT, TURN
from shoal.protocol.link import DRAIN, INLINE, Arrival, Meter, Part, Payload, Waiting, bytes_of
from shoal.protocol.messages import Chunk, Envelope, Weights
from shoal.protocol.pipe import Pipe

STARTING = 20.0  # seconds that the gateway process may take to listen
SILENT = 5.0  # seconds without a message from the gateway process after which it is ended
AGAIN = (0.05, 5.0)  # seconds until a process that died is replaced: at first, and at most (doubled each time)
UNTAKEN = 1 << 30  # bytes that the gateway process has not taken, above which peers count as stuck
BACKLOG = 4_096  # connections that may wait to be accepted, also while one process follows another
TURNED_AWAY = 256  # connections closed in a turn, if the gateway process has no descriptor left for them
T = TypeVar("T")


class Gateway:
    """A `Hub` whose socket lives in a gateway process. Made from the main thread, used by one thread; any thread may call
    `wake`. Raises UserError as a `Hub` does.

    keys: None: only this machine's actors can be let in. inline: bytes of arrays that go with their message, at most.
    memory: bytes that the gateway process may have; 0: half of this machine's.
    """

    inline = INLINE

    def __init__(
        self,
        address: str,
        keys: ServerKeys | None = None,
        clock: Callable[[], float] = time.monotonic,
        memory: int = 0,
    ) -> None:
        self.address, self._keys, self._clock = address, keys, clock
        self._memory = memory or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        self._meter = Meter(keys, clock)
        self._waiting = Waiting()
        self.wake = self._waiting.wake
        self._peers: OrderedDict[bytes, None] = OrderedDict()
        self._news: deque[Arrival] = deque()
        self._kept: deque[tuple[int, ...]] = deque(maxlen=KEPT)  # names of the payloads that the gateway process keeps
        self._plain: dict[tuple[int, ...], int] = {}  # name of one that it does not -> bytes of it sent since one was kept
        self._pause = AGAIN[0]
        self._again_at = float("inf")
        self._bound = False
        self._pipe: Pipe | None = None
        check_bind(address, keys)
        self._listener = listening(address) if address.startswith("tcp://") else None
        if self._listener:
            host, port = self._listener.getsockname()[:2]
            self.address = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
        self._start()
        self._listen()

    @property
    def pid(self) -> int:
        """Process id of the gateway process that faces actors now."""
        return self._process.pid

    # As a Hub

    def wait(self, seconds: float) -> None:
        """Wait until there is something to take in, `wake` is called, or `seconds` are over."""
        if self._pipe:
            self._try(self._pipe.flush)
        if self._pipe:
            self._waiting.poller.register(self._pipe.fileno(), zmq.POLLIN | (zmq.POLLOUT if self._pipe.pending else 0))
        self._waiting.wait(seconds)

    def drain(self) -> Iterator[Arrival]:
        """Arrivals, of at most DRAIN messages. A message that cannot be read is an arrival with a fault."""
        self._attend()
        if self._keys:
            self._keys.allowed.refresh(self._clock())  # looked at here too, so that a key that is out is out before a backlog
        came = 0
        while came < DRAIN and (frames := self._try(self._pipe.take) if self._pipe else None) is not None:
            self._silence = 0.0
            came += 1  # also if nothing of the frame is handed on
            for arrival in self._arrival(*frames):
                yield arrival
                came += 1
        while self._news:
            yield self._news.popleft()

    def send(self, peer: bytes, envelope: Envelope, payload: Payload | None = None) -> str:
        """Send, and never wait. Returns "" or why the peer cannot be reached, if that is known now; if it shows later, an
        arrival says so. The payload must not change afterwards."""
        if self._pipe is None or peer not in self._peers:
            return "lost its connection"
        if self._pipe.pending > UNTAKEN:
            return "takes nothing in any more"
        header = encode(envelope)
        if payload is None:
            self._pipe.put([SEND, peer, header])
        elif kept := self._kept_part(self._pipe, envelope, payload):
            self._pipe.put([SEND_KEPT, peer, header, *kept])
        else:
            self._pipe.put([SEND, peer, header, bytes_of(payload)])
        return ""

    say = send  # messages are gathered by the pipe

    def silent(self, peer: bytes) -> float | None:
        """Ask the gateway process how long nothing has come over the peer's connection; an arrival of kind "silent" answers."""
        if self._pipe is not None and peer in self._peers:
            self._pipe.put([PROBE, peer])
        return None

    def flush(self) -> list[tuple[bytes, str]]:
        return []

    def close(self) -> None:
        """End the gateway process, after at most FAREWELL seconds for its last messages to leave."""
        until = self._clock() + FAREWELL
        while self._pipe and self._pipe.pending and self._clock() < until:
            select.select([], [self._pipe.fileno()], [], FAREWELL)
            self._try(self._pipe.flush)
        self._end(kindly=True)
        if self._listener:
            self._listener.close()
        self.wake.close()

    def _kept_part(self, pipe: Pipe, envelope: Envelope, payload: Payload) -> tuple[bytes, bytes] | None:
        """Send weights, or changes of them, through once; the gateway process keeps them for all peers. Returns their name
        there, and the part of them that this peer gets; None if the gateway process does not keep them.

        Payloads of an older version make room at once. Those of the same or a newer version do so if as many bytes have gone
        through of the payload as it has. So beside KEPT payloads a version, at most twice the bytes that peers get go through,
        however many payloads they fetch by turns.
        """
        match envelope.message:
            case Weights(version, base=base) if len(payload) >= ZERO_COPY:
                name: tuple[int, ...] = (envelope.epoch, version, base)
            case Chunk(what) if len(what) < 3 and len(payload) >= ZERO_COPY:  # else it is the brief of one actor's task
                name = (envelope.epoch, *what)
            case _:
                return None
        whole, first, last = (
            (payload.whole, payload.first, payload.last) if isinstance(payload, Part) else (payload, 0, len(payload))
        )
        known, gone = repr(name).encode(), self._plain.get(name, 0)
        if name not in self._kept:
            if len(self._kept) == KEPT and self._kept[0][:2] >= name[:2] and gone < len(whole):
                self._plain[name] = gone + last - first
                return None
            self._kept.append(name)
            self._plain.clear()
            pipe.put([KEEP, known, whole])
        return known, PART.pack(first, last)

    def _arrival(self, kind: bytearray, *frames: bytearray) -> Iterator[Arrival]:
        match bytes(kind), frames:
            case b"came", [peer, user, *message]:
                self._know(bytes(peer))
                key, read_only = user.decode("ascii"), [memoryview(frame).toreadonly() for frame in message]
                if not self._keys or key in self._keys.allowed:
                    yield from self._meter.read(bytes(peer), key, read_only)
            case b"news", [about, text, peer]:
                if about == b"lost":
                    self._peers.pop(bytes(peer), None)
                yield Arrival(bytes(peer), None, None, text.decode(), kind=about.decode())
            case b"full", []:
                self._turn_away()
            case b"bound", [address]:
                self.address, self._bound = address.decode(), True

    def _turn_away(self) -> None:
        """Accept and close connections for which the gateway process has no descriptor: it would try again as fast as it can
        while they queue up. This process has descriptors of its own."""
        with suppress(OSError):  # no connection waits any more
            for _ in range(TURNED_AWAY if self._listener else 0):
                self._listener.accept()[0].close()  # type: ignore[union-attr]

    def _know(self, peer: bytes) -> None:
        self._peers[peer] = None
        self._peers.move_to_end(peer)
        if len(self._peers) > PEERS:
            self._peers.popitem(last=False)

    # Its process

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        program = [sys.executable, "-m", "shoal.protocol.gate", str(theirs.fileno()), str(os.getpid())]
        handed = [theirs.fileno(), *([self._listener.fileno()] if self._listener else [])]
        self._process = subprocess.Popen(program, stdin=subprocess.DEVNULL, pass_fds=handed)
        theirs.close()
        pipe = self._pipe = Pipe(ours, PIECE + SLACK)
        self._began, self._looked_at, self._again_at = self._clock(), self._clock(), float("inf")
        self._silence = SILENT - STARTING  # it may take STARTING seconds to its first message
        pipe.put([CONFIG, json.dumps(self._config()).encode()])
        self._waiting.poller.register(ours.fileno(), zmq.POLLIN)
        self._try(pipe.flush)

    def _config(self) -> dict[str, Any]:
        keys = self._keys
        told = (
            [keys.pair.public, keys.pair.secret, str(keys.allowed.path), keys.own.public, astuple(keys.budget)] if keys else []
        )
        listener = self._listener.fileno() if self._listener else -1
        return {
            "address": self.address, "listener": listener, "memory": self._memory, "keys": told
        }  # fmt: skip

    def _listen(self) -> None:
        """Wait until the first gateway process listens. Raises UserError if it cannot, so that the caller learns it at once."""
        until = self._clock() + STARTING
        while not self._bound and self._pipe is not None and self._clock() < until:
            self.wait(0.1)
            for arrival in self.drain():
                if arrival.kind == "unbound":
                    self.close()
                    raise UserError(arrival.fault)
        if not self._bound:
            self.close()
            raise UserError("the gateway process did not start; the reason is in its own output, above")

    def _attend(self) -> None:
        """Replace a process that has died; end a process that has been silent for SILENT seconds, to be replaced then."""
        now = self._clock()
        self._silence += min(now - self._looked_at, 2 * TURN)  # two turns at most: this process may have slept
        self._looked_at = now
        if self._pipe and self._silence > SILENT:
            self._died(f"was silent for {SILENT:g} s")
        if now >= self._again_at:
            self._start()

    def _try(self, act: Callable[[], T]) -> T | None:
        """The result of `act` on the pipe; None if the pipe turns out to have no other end, or to bring nonsense."""
        try:
            return act()
        except EOFError:
            self._died("ended")
        except ProtocolError as wrong:
            self._died(f"talks nonsense ({wrong})")
        return None

    def _died(self, how: str) -> None:
        code = self._end(kindly=False)
        by = f" by {signal.Signals(-code).name}" if code < 0 and how == "ended" else ""
        self._news.append(Arrival(b"", None, None, f"the gateway process {how}{by}; another takes its place", kind="gateway"))
        self._news.extend(Arrival(peer, None, None, "lost its connection", kind="lost") for peer in self._peers)
        self._peers.clear()
        self._kept.clear()
        now = self._clock()
        if now - self._began > 2 * AGAIN[1]:
            self._pause = AGAIN[0]
        self._again_at = now + self._pause
        self._pause = min(2 * self._pause, AGAIN[1])

    def _end(self, *, kindly: bool) -> int:
        """End the process: it is gone when this returns. Returns its exit status. kindly: True lets it send last messages."""
        if self._pipe:
            self._waiting.poller.unregister(self._pipe.fileno())
            self._pipe.finish() if kindly else self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(4 * FAREWELL)
            self._pipe.close()
            self._pipe = None
        self._process.kill()
        return self._process.wait()


def listening(address: str) -> socket.socket:
    """A socket at tcp://HOST:PORT that outlives the processes that accept connections from it. Raises UserError."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    host = host.strip("[]").replace("*", "0.0.0.0")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        made = socket.create_server((host, 0 if port == "*" else int(port)), family=family, backlog=BACKLOG)
    except (OSError, ValueError, OverflowError) as refused:
        raise unbound(address, refused) from None
    made.setblocking(False)
    return made
