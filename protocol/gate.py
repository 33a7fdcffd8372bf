"""The gateway process itself: it holds the ROUTER that strangers talk to, and no state. `gateway.py` starts and ends it.

The one idea: libzmq parses the bytes that strangers send, and ends its process if memory runs out or an assertion fails; so
that process holds nothing that could be lost. It decides nothing either: frames go through unread.

The gateway and the coordinator exchange messages of a `Pipe`; a message's first frame is its kind.
"""

from __future__ import annotations

import json
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
from shoal.protocol.front import Came, Entry, Front, raise_descriptor_limit
from shoal.protocol.keys import Allowed, Pair
from shoal.protocol.parent import die_with_parent
from shoal.protocol.pipe import Pipe

CAME, NEWS, FULL, BOUND, ALIVE = b"came", b"news", b"full", b"bound", b"alive"  # kinds of messages from the gateway
SEND, KEEP, SEND_KEPT, CONFIG, PROBE = b"send", b"keep", b"sendkept", b"config", b"probe"  # kinds of messages to the gateway
KEPT = 3  # payloads kept for many peers; the oldest goes first
PART = struct.Struct("<QQ")  # (first, last): a peer gets the bytes of a kept payload from `first` to before `last`
AHEAD = 4 << 20  # bytes that the coordinator has not taken, above which nothing more is taken from the ROUTER
TURN = 0.25  # seconds of a turn, at most; after a silent turn the gateway says that it is alive
TOOK = 64  # messages taken from either side in a turn, at most
FAREWELL = 0.5  # seconds that last messages have to leave


class Gate:
    """The gateway's life, from its configuration to the end of its pipe."""

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
        except EOFError:  # the coordinator has ended, or has ended the pipe
            self.front.close(FAREWELL)

    def _wait(self) -> None:
        """Wait for either side. While the coordinator has more than AHEAD bytes to take, nothing is taken from the ROUTER:
        peers wait, and keep their messages."""
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
            case b"probe", [peer]:
                if (seconds := self.front.silent(bytes(peer))) is not None:
                    self._tell(News("silent", str(seconds), bytes(peer)))
            case b"keep", [name, payload]:
                self.kept[bytes(name)] = payload
                while len(self.kept) > KEPT:
                    del self.kept[next(iter(self.kept))]
            case b"sendkept", [peer, header, name, part]:
                first, last = PART.unpack(part)
                self._send(bytes(peer), header, memoryview(self.kept[bytes(name)])[first:last])
            case _:
                raise AssertionError(f"{bytes(kind)!r} is no kind of message to a gateway")

    def _send(self, peer: bytes, header: bytearray, payload: Any = None) -> None:
        if why := self.front.send(peer, header, payload):
            self._tell(News("lost", why, peer))

    def _forward(self) -> None:
        for entry in self.front.knocks():
            self._tell(entry)
        if self.front.full:
            self._say(FULL)
        for _ in range(TOOK):
            if self.pipe.pending > AHEAD or (came := self.front.take()) is None:
                return
            self._tell(came)

    def _tell(self, entry: Entry) -> None:
        match entry:
            case Came(peer, user, frames) if len(frames) <= 2:
                self._say(CAME, peer, user.encode(), *(frame.buffer for frame in frames))
            case Came(peer, user, frames):
                name = f"key {user[:8]}" if user else "an actor"
                self._tell(News("malformed", f"a message has one frame or two, not {len(frames)}, from {name}"))
            case News(kind, text, peer):
                self._say(NEWS, kind.encode(), text.encode(), peer)

    def _beat(self) -> None:
        if time.monotonic() - self.said_at > TURN:
            self._say(ALIVE)

    def _say(self, *frames: Any) -> None:
        self.said_at = time.monotonic()
        self.pipe.put(frames)


def limit_memory(more: int) -> None:
    """Let this process have `more` bytes beside those that it has now."""
    now = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        if Path("/proc/self/statm").exists()
        else 0
    )
    if now:
        resource.setrlimit(resource.RLIMIT_AS, (now + more, now + more))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold a secret key


def keys_of(config: Mapping[str, Any]) -> ServerKeys | None:
    if not config["keys"]:
        return None
    public, secret, path, own, budget = config["keys"]
    allowed = Allowed(Path(path), {own: "this machine"})
    return ServerKeys(Pair(public, secret), allowed, Pair(own, ""), Budget(*budget))


def configured(pipe: Pipe) -> Gate | None:
    """The gate that the first message asks for; None if its address cannot be bound."""
    while (frames := pipe.take()) is None:
        select.select([pipe.fileno()], [], [])
    config = json.loads(frames[1])
    raise_descriptor_limit()
    try:
        front = Front(config["address"], keys_of(config), time.monotonic, config["listener"])
    except UserError as wrong:
        pipe.put([NEWS, b"unbound", str(wrong).encode(), b""])
        return None
    limit_memory(config["memory"])
    pipe.put([BOUND, front.address.encode()])
    return Gate(pipe, front)


def main(descriptor: int, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator handles Ctrl-C
    die_with_parent(parent)
    pipe = Pipe(socket.socket(fileno=descriptor), largest=sys.maxsize)
    gate = configured(pipe)
    pipe.flush()
    if gate:
        gate.live()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
