"""The door of a socket that strangers can reach: CURVE, the list of allowed keys, and limits of what each may send.

The one idea: closed unless open. A connection without a key on the list never comes through its handshake, even if no thread
answers for the list. After the handshake, the key of every single message is looked up again, so that a key that was struck
off the list is out at once, whatever connections it still has.
"""

from __future__ import annotations

import errno
import ipaddress
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import zmq

from shoal.protocol.budget import Buckets, Budget
from shoal.protocol.callers import Callers
from shoal.protocol.errors import UserError
from shoal.protocol.keys import Allowed, KeyFolder, Pair, z85_of

DOMAIN = "shoal"  # not "": only then, and with ZAP_ENFORCE_DOMAIN, does no peer get in while no thread answers for the list
ZAP = "inproc://zeromq.zap.01"
HANDSHAKE = 3_000  # milliseconds that a connection may take to prove its key: it holds a descriptor meanwhile
CONNECTIONS = 4_096  # connections that one key may have at a time: a line for words and one for arrays of each actor, twice
PEERS = 65_536  # connections whose key is remembered
TOLD = 256  # refusals remembered, so that each is reported once in AGAIN seconds and not at every attempt
AGAIN = 30.0  # seconds until the same refusal is reported again
TURN = 256  # handshakes answered in a turn, at most


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """A coordinator's keys. pair: its own; allowed: keys that it lets in; own: pair of the actors that it starts itself;
    budget: limits of what each key may send."""

    pair: Pair
    allowed: Allowed
    own: Pair
    budget: Budget = field(default_factory=Budget)


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """An actor's keys. pair: its own; server: public key that its coordinator must prove to have."""

    pair: Pair
    server: str


def server_keys(folder: KeyFolder, name: str) -> ServerKeys:
    """The keys of a coordinator with the pair `name` and the folder's list of allowed keys. Raises UserError."""
    pair, own = folder.pair(name), Pair.new()
    folder.allowed()  # raises now if something is wrong with the list, not at the first handshake
    return ServerKeys(pair, Allowed(folder.allowed_path, {own.public: "this machine"}), own)


def client_keys(folder: KeyFolder, name: str, server: str) -> ClientKeys:
    """The keys of an actor with the pair `name`. server: public key, or the name of a .pub in the folder. Raises UserError."""
    return ClientKeys(folder.pair(name), folder.public(server))


@dataclass(frozen=True, slots=True)
class News:
    """Something that happened at the door. kind: a report's kind, one word; text: a sentence for a person. peer: the connection
    that is "lost", to which nothing can be sent any more; empty: the news are of no connection."""

    kind: str
    text: str
    peer: bytes = b""


def is_local(address: str) -> bool:
    """True if only this machine can reach `address`. False for an interface's name, a wildcard and an unknown transport."""
    transport, _, rest = address.partition("://")
    if transport in ("ipc", "inproc"):
        return True
    host = rest.rpartition(":")[0].strip("[]")
    try:
        return transport == "tcp" and (host == "localhost" or ipaddress.ip_address(host).is_loopback)
    except ValueError:
        return False


def _is_open(address: str, keys: object) -> bool:
    """True if messages at `address` would cross a network without keys. Raises UserError for an address of another form."""
    if not address.startswith(("tcp://", "ipc://")):
        raise UserError(f"address {address!a}: give tcp://HOST:PORT or ipc://PATH")
    return keys is None and not is_local(address)


def check_bind(address: str, keys: ServerKeys | None) -> None:
    """Raise UserError if other machines could reach `address` and no keys would be asked for."""
    if _is_open(address, keys):
        raise UserError(
            f"other machines can reach {address}: type `shoal keys new NAME` and give --key NAME, or bind tcp://127.0.0.1:PORT"
        )


def check_connect(address: str, keys: ClientKeys | None) -> None:
    """Raise UserError if messages to `address` would cross a network in clear."""
    if _is_open(address, keys):
        raise UserError(
            f"{address} is another machine: give --key NAME --server PUBLIC; `shoal keys new NAME` makes a key, "
            "and the coordinator prints its PUBLIC"
        )


def unbound(address: str, refused: OSError | ValueError | OverflowError | zmq.ZMQError) -> UserError:
    """The error for whoever asked to bind `address`."""
    if getattr(refused, "errno", None) == errno.EADDRINUSE:
        return UserError(f"address {address} is in use: stop what runs there, or bind another port")
    return UserError(f"cannot bind {address} ({refused}): give tcp://HOST:PORT of this machine")


def dress(socket: zmq.Socket[bytes], keys: ClientKeys) -> None:
    """Make a socket talk to the holder of `keys.server` alone. Call it before the socket connects."""
    socket.setsockopt(zmq.CURVE_PUBLICKEY, z85_of(keys.pair.public))
    socket.setsockopt(zmq.CURVE_SECRETKEY, z85_of(keys.pair.secret))
    socket.setsockopt(zmq.CURVE_SERVERKEY, z85_of(keys.server))


def over_budget(name: str) -> str:
    """The sentence for a person about a message that is dropped. name: the key's."""
    return f"dropped a message: {name} sends more than its budget"


def user_of(frame: Any) -> str:
    """The key that a frame came under, as `Door` named it at the handshake; "" if the frame came under none."""
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return ""


class Door:
    """The door of one ROUTER, in its context, used by its thread; made before the socket binds. Wait on `zap`, then call
    `answer`. news: for a person."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        socket: zmq.Socket[bytes],
        keys: ServerKeys,
        clock: Callable[[], float],
    ) -> None:
        self.keys, self.clock = keys, clock
        self.news: deque[News] = deque(maxlen=TOLD)
        self._users: OrderedDict[bytes, str] = OrderedDict()  # connection -> key, as of its last message
        self._told: OrderedDict[tuple[str, ...], float] = OrderedDict()
        self._buckets = Buckets(keys.budget)
        self.callers = Callers()
        self.zap: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self.zap.setsockopt(zmq.LINGER, 0)
        self.zap.bind(ZAP)
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, z85_of(keys.pair.secret))
        socket.setsockopt_string(zmq.ZAP_DOMAIN, DOMAIN)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 0)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE)
        keys.allowed.refresh(clock())

    def answer(self) -> list[bytes]:
        """Answer handshakes. Returns connections that are out from now on, because their keys left the list."""
        now = self.clock()
        out = self.keys.allowed.refresh(now)
        for _ in range(TURN):
            try:
                self._decide(self.zap.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                break
        return self._cut(out) if out else []

    def _cut(self, out: set[str]) -> list[bytes]:
        self.news.extend(
            News("revoked", f"{self.keys.allowed.name(public)} is not on the list any more") for public in sorted(out)
        )
        gone = [peer for peer, user in self._users.items() if user in out]
        for peer in gone:
            del self._users[peer]
        return gone

    def judge(self, peer: bytes, frames: list[Any]) -> tuple[str, News | None]:
        """A message's key, and why the message may not pass; None if it may. frames: as the ROUTER received them, uncopied."""
        user = user_of(frames[-1])
        if user not in self.keys.allowed:
            self._users.pop(peer, None)
            return user, News("access", f"dropped a message: {self.keys.allowed.name(user)} is not on the list")
        if user != self.keys.own.public and not self._buckets.take(user, sum(map(len, frames)), self.clock()):
            return user, News("budget", over_budget(self.keys.allowed.name(user)))
        if not self.knows(peer):
            self.callers.spoke(user, frames[-1].get(zmq.SRCFD))
        self._users[peer] = user
        self._users.move_to_end(peer)
        if len(self._users) > PEERS:
            self._users.popitem(last=False)
        return user, None

    def knows(self, peer: bytes) -> bool:
        """True if a message of this connection was let pass, and the connection is not known to be gone."""
        return peer in self._users

    def opens_to(self, peer: bytes) -> bool:
        """True if messages may be sent to this connection."""
        return self._users.get(peer, "") in self.keys.allowed

    def forget(self, peer: bytes) -> None:
        """Drop the record of a connection that is gone."""
        self._users.pop(peer, None)

    def failed(self) -> None:
        """Report a handshake that failed before a key was shown; ZeroMQ does not say whose."""
        self._tell(("handshake",), "refused a connection that shows no key, expects another coordinator's key, or is not Shoal")

    def full(self) -> None:
        """Report that no descriptor is left for more connections."""
        self._tell(("full",), "turned connections away: this process may hold no more (raise ulimit -n); present ones go on")

    def close(self) -> None:
        self.zap.close(0)

    def _decide(self, request: list[bytes]) -> None:
        """Answer a request of ZeroMQ's RFC 27: [sender, "", version, request, domain, address, identity, mechanism,
        credentials ...]."""
        if len(request) != 9 or request[2] != b"1.0" or request[7] != b"CURVE" or request[4] != DOMAIN.encode():
            if len(request) > 3:
                self.zap.send_multipart([request[0], b"", b"1.0", request[3], b"400", b"keys only", b"", b""])
            return
        public, where = request[8].hex(), request[5].decode("ascii", "replace")
        code, text, user = b"200", "", public.encode()
        if public not in self.keys.allowed:
            code, text, user = b"400", f"key {public} is not on the list; to let it in: shoal keys allow {public}", b""
        elif public != self.keys.own.public and self.callers.many(public) >= CONNECTIONS:
            its = f"{self.keys.allowed.name(public)} has {CONNECTIONS:,} connections here, and a key may have no more"
            code, text, user = b"400", f"{its}: end actors, or give them keys of their own", b""
        else:
            self.callers.let_in(public)
        if text:
            self._tell(("key", public, where), f"refused {where!a}: {text}")
        self.zap.send_multipart([request[0], b"", b"1.0", request[3], code, b"not let in" if text else b"", user, b""])

    def _tell(self, what: tuple[str, ...], text: str) -> None:
        now = self.clock()
        if now - self._told.get(what, float("-inf")) < AGAIN:
            return
        self._told[what] = now
        self._told.move_to_end(what)
        if len(self._told) > TOLD:
            self._told.popitem(last=False)
        self.news.append(News("access", text))
