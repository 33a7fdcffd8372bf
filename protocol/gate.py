"""The gateway process itself: it holds the ROUTER that strangers talk to, and no state. `gateway.py` starts and ends it.

The one idea: libzmq parses what strangers send, and ends its process when memory runs out or an assertion fails; so that
process holds nothing that could be lost. It decides nothing either: frames go through unread.

What it says and hears are messages of a `Pipe`, the first frame their kind.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import zmq

from shoal.protocol.budget import Budget
from shoal.protocol.door import News, ServerKeys
from shoal.protocol.errors import UserError
from shoal.protocol.front import Came, Front, Gone, raise_descriptor_limit
from shoal.protocol.keys import Allowed, Pair
from shoal.protocol.pipe import Pipe

CAME, GONE, NEWS, FULL = b"came", b"gone", b"news", b"full"  # from the gateway
BOUND, UNBOUND, ALIVE = b"bound", b"unbound", b"alive"
SEND, KEEP, SEND_KEPT, CONFIG = b"send", b"keep", b"sendkept", b"config"  # to it
KEPT = 3  # payloads that many peers get: those before are let go of
PART = struct.Struct("<QQ")  # which bytes of one a peer gets: from the first to before the last
AHEAD = 4 << 20  # bytes that the coordinator has not taken yet, at which no more is taken from the ROUTER
TURN = 0.25  # seconds
TOOK = 64  # messages from either side in a turn
FAREWELL = 0.5  # seconds that last words have to leave
PR_SET_PDEATHSIG = 1


class Gate:
    """From config to the end of the pipe."""

    def __init__(self, pipe: Pipe, front: Front) -> None:
        self.pipe, self.front = pipe, front
        self.kept: dict[bytes, bytearray] = {}
        self.poller = zmq.Poller()
        for bell in self.front.bells:
            self.poller.register(bell, zmq.POLLIN)
        self.said_at = time.monotonic()

    def live(self) -> None:
        try:
            while True:
                self._wait()
                for frames in self._heard():
                    self._obey(frames)
                self._forward()
                self._beat()
                self.pipe.flush()
        except EOFError:  # the coordinator is gone, or has said all it had to say
            self.front.close(FAREWELL)

    def _wait(self) -> None:
        """Nothing is taken from the ROUTER while the coordinator has much to take from us: its peers wait, and hold theirs."""
        busy = self.pipe.pending > 0
        self.poller.register(self.pipe.fileno(), zmq.POLLIN | (zmq.POLLOUT if busy else 0))
        self.poller.register(self.front.socket, 0 if self.pipe.pending > AHEAD else zmq.POLLIN)
        self.poller.poll(int(TURN * 1_000))

    def _heard(self) -> Iterator[list[bytearray]]:
        for _ in range(TOOK):
            if (frames := self.pipe.take()) is None:
                return
            yield frames

    def _obey(self, frames: list[bytearray]) -> None:
        kind, *rest = frames
        match bytes(kind), rest:
            case b"send", [peer, header, *payload]:
                self._send(bytes(peer), header, *payload)
            case b"keep", [name, payload]:
                self.kept[bytes(name)] = payload
                while len(self.kept) > KEPT:
                    del self.kept[next(iter(self.kept))]
            case b"sendkept", [peer, header, name, part]:
                first, last = PART.unpack(part)
                self._send(bytes(peer), header, memoryview(self.kept[bytes(name)])[first:last])
            case _:
                raise AssertionError(f"a gateway is not told {bytes(kind)!r}")

    def _send(self, peer: bytes, header: bytearray, payload: Any = None) -> None:
        if why := self.front.send(peer, header, payload):
            self._say(GONE, peer, why.encode())

    def _forward(self) -> None:
        for entry in self.front.knocks():
            self._tell(entry)
        if self.front.full:
            self._say(FULL)
        for _ in range(TOOK):
            if self.pipe.pending > AHEAD or (came := self.front.take()) is None:
                return
            self._tell(came)

    def _tell(self, entry: Came | Gone | News) -> None:
        match entry:
            case Came(peer, user, frames) if len(frames) <= 2:
                self._say(CAME, peer, user.encode(), *(frame.buffer for frame in frames))
            case Came(peer, user, frames):
                name = f"key {user[:8]}" if user else "an actor"
                self._say(NEWS, b"malformed", f"a message has one frame or two, not {len(frames)}, from {name}".encode())
            case Gone(peer, why):
                self._say(GONE, peer, why.encode())
            case news:
                self._say(NEWS, news.kind.encode(), news.text.encode())

    def _beat(self) -> None:
        if time.monotonic() - self.said_at > TURN:
            self._say(ALIVE)

    def _say(self, *frames: Any) -> None:
        self.said_at = time.monotonic()
        self.pipe.put(frames)


def limit_memory(more: int) -> None:
    """This process may have so many bytes beside what it has now."""
    now = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        if Path("/proc/self/statm").exists()
        else 0
    )
    if now:
        resource.setrlimit(resource.RLIMIT_AS, (now + more, now + more))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a secret key is in here


def keys_of(config: Mapping[str, Any]) -> ServerKeys | None:
    if not config["keys"]:
        return None
    public, secret, path, own, budget = config["keys"]
    allowed = Allowed(Path(path), {own: "this machine"})
    return ServerKeys(Pair(public, secret), allowed, Pair(own, ""), Budget(*budget))


def configured(pipe: Pipe) -> Gate | None:
    """As the first message says; None where there is no such address to be had."""
    while (frames := pipe.take()) is None:
        select.select([pipe.fileno()], [], [])
    config = json.loads(frames[1])
    raise_descriptor_limit()
    try:
        front = Front(config["address"], keys_of(config), time.monotonic, config["listener"])
    except UserError as wrong:
        pipe.put([UNBOUND, str(wrong).encode()])
        return None
    limit_memory(config["memory"])
    pipe.put([BOUND, front.address.encode()])
    return Gate(pipe, front)


def main(descriptor: int, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the coordinator's to hear
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            return
    pipe = Pipe(socket.socket(fileno=descriptor), largest=sys.maxsize)
    gate = configured(pipe)
    pipe.flush()
    if gate:
        gate.live()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
