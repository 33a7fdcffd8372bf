"""Ways in for strangers, each tried on a live coordinator's wire over loopback.

The one idea: a case counts bytes. An intruder's bytes must not arrive as a message, and bytes for actors that are let in must
not reach the intruder. An honest actor is heard, and hears, before and after; else the case shows nothing.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import zmq

from shoal.coordinator.deciding.bounds import Bounds, Goal
from shoal.coordinator.deciding.core import Core
from shoal.coordinator.deciding.events import Admit, Heard, Send, SendWeights
from shoal.coordinator.deciding.plans.stream import Stream
from shoal.protocol.budget import Budget
from shoal.protocol.codec import encode
from shoal.protocol.door import ClientKeys, client_keys, dress, server_keys
from shoal.protocol.front import PIECE, Front
from shoal.protocol.gateway import Gateway
from shoal.protocol.keys import KeyFolder, Pair, z85_of
from shoal.protocol.link import Arrival, Hub, Line
from shoal.protocol.messages import PROTOCOL, Beat, Contribute, Envelope, Hello, Weights

INTRUSION = b"from outside, " * 100
SECRET = b"weights, for those let in only; " * 100
MOMENT = 0.2  # seconds in which an intrusion would have shown
READ = 0.9  # seconds within which a changed list is read
LIMIT = 60.0  # seconds after which a wait is given up: a refused line waits for up to 5 s between two tries
PING = Envelope(b"honest..", 1, Beat(1))

Dress = Callable[["zmq.Socket[bytes]"], None]


class Site:
    """A coordinator's wire with its keys. It answers every message with SECRET.

    alice and bob are on its list; mallory has a pair of her own and is not on it.
    """

    def __init__(
        self, folder: Path, *, gateway: bool, keys: bool = True, budget: Budget | None = None, memory: int = 0
    ) -> None:
        self.folder = KeyFolder(folder / "keys")
        self.pairs = {name: self.folder.new(name) for name in ("hub", "alice", "bob", "mallory")}
        for name in ("alice", "bob"):
            self.folder.allow(self.pairs[name].public)
        made = server_keys(self.folder, "hub") if keys else None
        if made and budget:
            made = replace(made, budget=budget)
        self.gateway = gateway
        options: dict[str, Any] = {"memory": memory} if gateway else {}
        self.wire: Hub | Gateway = (Gateway if gateway else Hub)("tcp://127.0.0.1:*", made, **options)
        self.keys = made
        self.arrived: list[tuple[bytes, str, bytes]] = []  # peer, user, payload
        self.told: list[str] = []  # reports for a person
        self.hears: Callable[[Arrival], None] = self.answer
        self._lines: list[Line] = []

    @property
    def place(self) -> tuple[str, int]:
        host, _, port = self.wire.address.removeprefix("tcp://").rpartition(":")
        return host, int(port)

    def answer(self, arrival: Arrival) -> None:
        self.wire.send(arrival.peer, Envelope(b"honest..", 1, Weights(1)), SECRET)

    def pump(self, until: Callable[[], bool], seconds: float = LIMIT) -> bool:
        """Runs the wire until `until()` is true or `seconds` have passed. Returns whether it was true."""
        ends_at = time.monotonic() + seconds
        while not until():
            if time.monotonic() > ends_at:
                return False
            self.wire.wait(0.01)
            for arrival in self.wire.drain():
                if arrival.envelope is None:
                    self.told.append(f"{arrival.kind}: {arrival.fault}")
                else:
                    self.arrived.append((arrival.peer, arrival.user, bytes(arrival.payload or b"")))
                    self.hears(arrival)
        return True

    def moment(self) -> None:
        self.pump(lambda: False, MOMENT)

    def line(self, name: str) -> Line:
        line = Line(self.wire.address, client_keys(self.folder, name, "hub") if self.keys else None)
        self._lines.append(line)
        return line

    def exchange(self, line: Line, payload: bytes = b"hello") -> bool:
        """Says a word and waits for the answer. Returns True if both arrived."""
        got: list[Arrival] = []
        said_at = float("-inf")

        def answered() -> bool:
            nonlocal said_at
            if time.monotonic() - said_at > 0.5:
                said_at = time.monotonic()
                line.send(PING, payload)
            got.extend(line.drain())
            return any(bytes(arrival.payload or b"") == SECRET for arrival in got)

        return self.pump(answered)

    def honest(self) -> bool:
        return self.exchange(self.line("alice"))

    def intruded(self) -> int:
        """Returns the bytes of an intruder that arrived as messages."""
        return sum(len(payload) for _, _, payload in self.arrived if payload.startswith(INTRUSION[:13]))

    def close(self) -> None:
        for line in self._lines:
            line.close()
        self.wire.close()


@contextlib.contextmanager
def intruder(site: Site, clothes: Dress = lambda made: None) -> Iterator[zmq.Socket[bytes]]:
    """Yields a DEALER that is connected to the site. clothes: dresses the socket, for example with keys."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made = context.socket(zmq.DEALER)
    made.setsockopt(zmq.LINGER, 0)
    clothes(made)
    made.connect(site.wire.address)
    try:
        yield made
    finally:
        made.close()
        context.term()


def got(made: zmq.Socket[bytes]) -> int:
    """Returns the bytes of messages that have reached the socket."""
    total = 0
    while made.poll(0):
        total += sum(map(len, made.recv_multipart()))
    return total


def knock(site: Site, clothes: Dress = lambda made: None) -> int:
    """Sends an intrusion as a peer that is not let in. Returns the bytes that came back."""
    with intruder(site, clothes) as made:
        made.send_multipart([encode(PING), INTRUSION], zmq.NOBLOCK)
        site.moment()
        return got(made)


def as_pair(pair: Pair, server: str) -> Dress:
    return lambda made: dress(made, ClientKeys(pair, server))


def raw(site: Site, *parts: bytes) -> int:
    """Sends bytes over plain TCP. Returns the secret bytes that came back."""
    back = b""
    with socket.create_connection(site.place) as plain:
        plain.settimeout(0.01)
        for part in (*parts, *[b""] * int(MOMENT * 20)):
            with contextlib.suppress(ConnectionError):
                plain.sendall(part)
            site.pump(lambda: False, 0.05)
            with contextlib.suppress(TimeoutError, ConnectionError):
                back += plain.recv(1 << 20)
    return back.count(SECRET[:32]) * 32


def greeting(mechanism: bytes) -> bytes:
    """Returns the greeting of ZMTP 3.0 (RFC 23)."""
    return b"\xff" + bytes(8) + b"\x7f\x03\x00" + mechanism.ljust(20, b"\0") + bytes(32)


def frame(body: bytes, *, more: bool = False, command: bool = False) -> bytes:
    flags = more * 1 | command * 4
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return bytes([flags | 2]) + len(body).to_bytes(8, "big") + body


def ready() -> bytes:
    return frame(b"\x05READY" + b"\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER", command=True)


# Each case returns the bytes that went out to an intruder. `Site.intruded` counts the bytes that came in.


def no_key(site: Site) -> int:
    return knock(site)


def unknown_key(site: Site) -> int:
    return knock(site, as_pair(site.pairs["mallory"], site.pairs["hub"].public))


def wrong_server_key(site: Site) -> int:
    return knock(site, as_pair(site.pairs["alice"], site.pairs["bob"].public))


def password(site: Site) -> int:
    def clothes(made: zmq.Socket[bytes]) -> None:
        made.setsockopt(zmq.PLAIN_USERNAME, b"alice")
        made.setsockopt(zmq.PLAIN_PASSWORD, b"alice")

    return knock(site, clothes)


def plain_bytes(site: Site) -> int:
    return raw(site, b"GET / HTTP/1.1\r\nHost: shoal\r\n\r\n", os.urandom(1_000))


def null_handshake(site: Site) -> int:
    return raw(site, greeting(b"NULL"), ready(), frame(encode(PING), more=True) + frame(INTRUSION))


def no_handshake(site: Site) -> int:
    """Sends messages right behind the greeting of a mechanism, without its handshake."""
    return raw(site, greeting(b"CURVE"), ready(), frame(encode(PING), more=True) + frame(INTRUSION))


def false_server(site: Site) -> int:
    """Another process listens at the coordinator's address, with its own key pair, and lets everybody in."""
    return _listener(site, lambda made: _serve(made, site.pairs["mallory"]))


def plain_server(site: Site) -> int:
    """Another process listens at the coordinator's address and asks for no key."""
    return _listener(site, lambda made: None)


def _serve(made: zmq.Socket[bytes], pair: Pair) -> None:
    made.setsockopt(zmq.CURVE_SERVER, 1)
    made.setsockopt(zmq.CURVE_SECRETKEY, z85_of(pair.secret))


def _listener(site: Site, clothes: Dress) -> int:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made = context.socket(zmq.ROUTER)
    made.setsockopt(zmq.LINGER, 0)
    clothes(made)
    made.bind("tcp://127.0.0.1:*")
    keys = ClientKeys(site.pairs["alice"], site.pairs["hub"].public)
    line = Line(made.getsockopt_string(zmq.LAST_ENDPOINT), keys)
    try:
        line.send(PING, SECRET)
        site.moment()
        return got(made)
    finally:
        line.close()
        made.close()
        context.term()


def revoked_and_speaks(site: Site) -> int:
    """A key is revoked while its connection lives, and the peer goes on speaking."""
    bob = site.line("bob")
    assert site.exchange(bob)
    site.folder.revoke("bob")
    revoked_at = time.monotonic()
    site.pump(lambda: any("not on the list any more" in text for text in site.told), LIMIT)
    site.told.append(f"revoked within {time.monotonic() - revoked_at:.2f} s")
    list(bob.drain())
    bob.send(PING, INTRUSION)
    site.moment()
    return sum(len(arrival.payload or b"") for arrival in bob.drain())


def revoked_and_listens(site: Site) -> int:
    """A key is revoked while its connection lives, and the peer only listens: it gets no more weights."""
    bob = site.line("bob")
    assert site.exchange(bob)
    peer = next(peer for peer, user, _ in site.arrived if not user or user == site.pairs["bob"].public)
    site.folder.revoke("bob")
    site.pump(lambda: any("not on the list any more" in text for text in site.told), LIMIT)
    list(bob.drain())
    site.wire.send(peer, Envelope(b"honest..", 1, Weights(2)), SECRET)
    site.moment()
    return sum(len(arrival.payload or b"") for arrival in bob.drain())


def revoked_before(site: Site) -> int:
    site.folder.revoke("bob")
    site.pump(lambda: False, READ)
    return knock(site, as_pair(site.pairs["bob"], site.pairs["hub"].public))


def nobody_answers(site: Site) -> int:
    """Nobody looks keys up any more: the door must be shut."""
    front = Front("tcp://127.0.0.1:*", site.keys, time.monotonic)
    assert front.door
    front.door.zap.close()
    line = Line(front.address, client_keys(site.folder, "alice", "hub"))
    try:
        line.send(PING, INTRUSION)
        site.moment()
        return got(front.socket)
    finally:
        line.close()
        front.close(0)


def list_lost(site: Site) -> int:
    """The list is gone: nobody may be let in."""
    kept = site.folder.allowed_path.read_bytes()
    site.folder.allowed_path.unlink()
    site.pump(lambda: False, READ)
    back = knock(site, as_pair(site.pairs["bob"], site.pairs["hub"].public))
    site.folder.allowed_path.write_bytes(kept)
    site.folder.allowed_path.chmod(0o600)
    site.pump(lambda: False, READ)
    return back


def list_forged(site: Site) -> int:
    """Anybody on this machine could have written the list: nobody on it may be let in."""
    site.folder.allow(site.pairs["mallory"].public, "mallory")
    site.folder.allowed_path.chmod(0o666)
    site.pump(lambda: False, READ)
    back = knock(site, as_pair(site.pairs["mallory"], site.pairs["hub"].public))
    site.folder.allowed_path.chmod(0o600)
    site.folder.revoke("mallory")
    site.pump(lambda: False, READ)
    return back


def squatted_routing_id(site: Site) -> int:
    """A peer with a key takes another peer's routing id, to get that peer's messages."""
    alice = site.line("alice")
    assert site.exchange(alice)
    peer = site.arrived[-1][0]

    def clothes(made: zmq.Socket[bytes]) -> None:
        as_pair(site.pairs["bob"], site.pairs["hub"].public)(made)
        made.setsockopt(zmq.ROUTING_ID, peer)

    with intruder(site, clothes) as made:
        made.send_multipart([encode(PING), INTRUSION], zmq.NOBLOCK)
        site.moment()
        site.wire.send(peer, Envelope(b"honest..", 1, Weights(3)), SECRET)
        site.moment()
        assert any(bytes(arrival.payload or b"") == SECRET for arrival in alice.drain())
        return got(made)


def anothers_session(site: Site) -> int:
    """A peer with a key speaks in another peer's session and contributes to that peer's task."""
    core = Core(Stream(1, 9), Goal(versions=99), Bounds())
    sent: list[tuple[bytes, Any]] = []

    def hears(arrival: Arrival) -> None:
        assert arrival.envelope is not None
        for effect in core.handle(Heard(arrival.peer, arrival.envelope, user=arrival.user), 0.0):
            if isinstance(effect, Send):
                sent.append((effect.peer, effect.envelope.message))
            if isinstance(effect, Admit | SendWeights):
                sent.append((effect.peer, effect))

    site.hears = hears
    session = b"alice..."
    alice, bob = site.line("alice"), site.line("bob")
    alice.send(Envelope(session, 0, Hello(PROTOCOL, "alice", "", 1, ())))
    assert site.pump(lambda: bool(core.facts.ledger.leases))
    before = len(sent)
    task = next(iter(core.facts.ledger.leases))
    steal = Contribute(task, 1, 0, 1.0, "", False, {}, {}, 0.0, 0.0)
    for message in (steal, Hello(PROTOCOL, "alice", "", 1, ()), Beat(7)):
        bob.send(Envelope(session, core.facts.epoch, message))
    assert site.pump(lambda: len(sent) >= before + 3)
    taken = core.facts.ledger.counts.heard or core.facts.roster.actors[session].progress or task not in core.facts.ledger.leases
    site.hears = site.answer
    return len(INTRUSION) * bool(taken) + sum(not isinstance(message, type(sent[-1][1])) for _, message in sent[before:])


class Wiretap(threading.Thread):
    """Passes a TCP connection on and records what comes in. bend: changes a bit of each piece that comes in."""

    def __init__(self, place: tuple[str, int]) -> None:
        super().__init__(daemon=True)
        self.place = place
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.recorded = bytearray()
        self.bend = False
        self.start()

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(self.place)
                for source, target, inward in ((near, far, True), (far, near, False)):
                    threading.Thread(target=self._carry, args=(source, target, inward), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, inward: bool) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(65_536):
                if inward and self.bend:
                    chunk = chunk[:-20] + bytes([chunk[-20] ^ 1]) + chunk[-19:]
                if inward:
                    self.recorded += chunk
                target.sendall(chunk)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextlib.contextmanager
def tapped(site: Site, name: str) -> Iterator[tuple[Wiretap, Line]]:
    tap = Wiretap(site.place)
    line = Line(tap.address, client_keys(site.folder, name, "hub"))
    try:
        yield tap, line
    finally:
        line.close()
        tap.listener.shutdown(socket.SHUT_RDWR)
        tap.listener.close()


def overheard(site: Site) -> int:
    """An eavesdropper reads the network. Returns the readable bytes."""
    with tapped(site, "alice") as (tap, line):
        assert site.exchange(line, b"said by an honest actor")
        return bytes(tap.recorded).count(b"honest actor")


def replayed(site: Site) -> int:
    """An attacker replays, byte by byte, what was recorded of an honest actor."""
    with tapped(site, "alice") as (tap, line):
        assert site.exchange(line, INTRUSION)
        recorded = bytes(tap.recorded)
    site.arrived.clear()
    return raw(site, *(recorded[at : at + 4_096] for at in range(0, len(recorded), 4_096)))


def bent(site: Site) -> int:
    """An attacker changes a bit of what an honest actor says."""
    with tapped(site, "alice") as (tap, line):
        assert site.exchange(line)
        tap.bend = True
        line.send(PING, INTRUSION)
        site.moment()
        return 0


def oversize(site: Site) -> int:
    """A peer with a key sends a frame larger than any frame of Shoal."""
    with intruder(site, as_pair(site.pairs["bob"], site.pairs["hub"].public)) as made:
        made.send_multipart([encode(PING), INTRUSION * (PIECE // len(INTRUSION) + 1)], zmq.NOBLOCK)
        site.moment()
        return got(made)


def too_many_frames(site: Site) -> int:
    with intruder(site, as_pair(site.pairs["bob"], site.pairs["hub"].public)) as made:
        made.send_multipart([encode(PING), *[INTRUSION] * 50], zmq.NOBLOCK)
        site.moment()
        return got(made)


def nonsense(site: Site) -> int:
    """A peer with a key sends bytes that are no message."""
    with intruder(site, as_pair(site.pairs["bob"], site.pairs["hub"].public)) as made:
        for header in (b"", b"\x80" * 60_000, b"\xdd\xff\xff\xff\xff" * 1_000, os.urandom(100)):
            made.send_multipart([header, INTRUSION], zmq.NOBLOCK)
        site.moment()
        return got(made)


def idle_connections(site: Site) -> int:
    """More connections than descriptors stay silent, while an honest actor goes on."""
    alice = site.line("alice")
    assert site.exchange(alice)
    most = 0
    if isinstance(site.wire, Gateway) and hasattr(resource, "prlimit"):
        most = len(os.listdir(f"/proc/{site.wire.pid}/fd")) + 30
        resource.prlimit(site.wire.pid, resource.RLIMIT_NOFILE, (most, most))
    idle = [socket.create_connection(site.place) for _ in range(100)]
    for _ in range(20):
        assert site.exchange(alice)
    for plain in idle:
        plain.close()
    if most:  # room again for later connections
        site.pump(lambda: len(os.listdir(f"/proc/{site.wire.pid}/fd")) < most - 10, LIMIT)  # type: ignore[union-attr]
    return 0


CASES: Mapping[str, Callable[[Site], int]] = MappingProxyType(
    {
        case.__name__: case
        for case in (
            no_key,
            unknown_key,
            wrong_server_key,
            password,
            plain_bytes,
            null_handshake,
            no_handshake,
            false_server,
            plain_server,
            revoked_and_speaks,
            revoked_and_listens,
            revoked_before,
            nobody_answers,
            list_lost,
            list_forged,
            squatted_routing_id,
            anothers_session,
            overheard,
            replayed,
            bent,
            oversize,
            too_many_frames,
            nonsense,
            idle_connections,
        )
    }
)


@dataclass(frozen=True)
class Attempt:
    """Result of a case: bytes that came in and went out. honest: an honest actor was served before and after. told: reports."""

    came_in: int
    went_out: int
    honest: bool
    told: list[str] = field(default_factory=list)


def attempt(name: str, folder: Path, *, gateway: bool) -> Attempt:
    """Tries one case on a site of its own."""
    site = Site(folder, gateway=gateway)
    try:
        before = site.honest()
        went_out = CASES[name](site)
        return Attempt(site.intruded(), went_out, before and site.honest(), site.told)
    finally:
        site.close()
