"""Secure aggregation: a server learns the sum of vectors and no vector (Bonawitz et al. 2017; SecAgg+, Bell et al. 2020).

The one idea: a client adds two kinds of masks to its vector, modulo 2**64. Pairwise masks cancel in the sum. A mask of its own
does not, and is taken off only if the vector is in the sum. Shares of both secrets lie with the client's neighbours, who tell a
share of one kind or of the other, and never of both: that of the mask of its own for a client that is in the sum, that of the
key of its pairwise masks for a client that dropped out.

The phases, each a message up and an answer down:

    advertise   two public keys and a signature            -> the keys of the client's neighbours
    share       sealed shares for each neighbour           -> the shares that neighbours sealed for this client
    mask        the masked vector                          -> the clients whose vectors came
    confirm     a signature under that list                -> the neighbours' signatures under the same list
    unmask      a share for each neighbour                 -> nothing: the server takes the masks off

Pure: no sockets, no clock; random bytes are passed in. `session` names one try of one round: keys, masks and signatures of one
session are worth nothing in another.

A server that follows the protocol and looks at everything learns nothing but the sum, as long as fewer than `threshold`
neighbours of a client collude with it. A server that lies cannot put its own keys in place of the clients', because those are
signed. A client signs one list of survivors, unmasks under no other, and only if `threshold` of its neighbours signed the same.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.protocol import sealing
from shoal.protocol.errors import ProtocolError
from shoal.protocol.sealing import KEY, SHARE, Randomness, Words

Numbers: TypeAlias = npt.NDArray[np.int64]

PHASES = ("advertise", "share", "mask", "confirm", "unmask")


class Aborted(ProtocolError):  # noqa: N818  the papers' word
    """The protocol ends without a sum, because going on would tell more than a sum, or could not give one."""


@dataclass(frozen=True)
class Terms:
    """The terms of a session, which all sides know. session: bytes that no other session has. clients: those asked, in order.

    neighbours: number of other clients that a client shares masks and secrets with (the papers' k), even, or all others.
    threshold: shares that give a secret back (t). least: fewest clients in a sum.
    """

    session: bytes
    clients: tuple[int, ...]
    neighbours: int
    threshold: int
    least: int

    def __post_init__(self) -> None:
        many = len(self.clients)
        if not 2 <= self.least <= many:
            raise Aborted(f"{many} clients: a sum of at least {self.least} of them needs from 2 to {many}")
        if not self.degree // 2 < self.threshold <= self.degree:
            raise Aborted(f"threshold={self.threshold}: of {self.degree} neighbours more than half are needed, and all suffice")

    @property
    def degree(self) -> int:
        """The number of neighbours of each client."""
        return min(self.neighbours, len(self.clients) - 1)

    @classmethod
    def of(cls, session: bytes, clients: Iterable[int], neighbours: int = 0, threshold: int = 0, least: int = 0) -> Terms:
        """The terms, with a default for each number that is 0: as many neighbours as `enough` says, two thirds of them as the
        threshold, and two thirds of the clients in a sum."""
        its = tuple(clients)
        degree = min(neighbours or enough(len(its)), len(its) - 1)
        return cls(session, its, degree, threshold or degree // 2 + max(1, degree // 6), least or max(2, -(-2 * len(its) // 3)))


def enough(clients: int) -> int:
    """Neighbours for so many clients: all others up to 64 clients, else an even number that grows with the logarithm, some
    above those of Bell et al. 2020, table 1, for a third of clients that drop out or collude."""
    return clients - 1 if clients <= 64 else min(clients - 1, 2 * math.ceil(12 + 6 * math.log2(clients)))


def graph(terms: Terms, adverts: Mapping[int, Advert]) -> dict[int, tuple[int, ...]]:
    """Client -> its neighbours among those who advertised: a ring of the clients in random order, each joined to the nearest on
    both sides. The order follows from all their keys, which nobody chooses alone."""
    ring = sorted(adverts)
    seed = hashlib.sha256(terms.session + b"".join(adverts[client].plain for client in ring)).digest()
    random.Random(seed).shuffle(ring)
    many = len(ring)
    degree = min(terms.neighbours, many - 1)
    if degree == many - 1:
        return {client: tuple(other for other in sorted(ring) if other != client) for client in ring}
    reach = [step for half in range(1, degree // 2 + 1) for step in (half, -half)]
    return {client: tuple(sorted(ring[(at + step) % many] for step in reach)) for at, client in enumerate(ring)}


@dataclass(frozen=True)
class Advert:
    """A client's public keys: `sealing` for shares that are sealed for it, `masking` for pairwise masks; and its signature."""

    sealing: bytes
    masking: bytes
    signature: bytes

    @property
    def plain(self) -> bytes:
        return self.sealing + self.masking


@dataclass(frozen=True)
class Shares:
    """The shares that a client tells in the phase unmask. own: neighbour in the sum -> share of the seed of its own mask. keys:
    neighbour that dropped out -> share of the private key of its pairwise masks. Their keys have no client in common."""

    own: Mapping[int, bytes]
    keys: Mapping[int, bytes]


def _about(terms: Terms, phase: str, *parts: bytes | int) -> bytes:
    """The bytes that a signature or a key is for. Every part has its length in front, so that no two lists read alike."""
    raw = [terms.session, phase.encode(), *(part.to_bytes(8, "big") if isinstance(part, int) else part for part in parts)]
    return b"".join(len(each).to_bytes(4, "big") + each for each in raw)


def _listed(clients: Iterable[int]) -> bytes:
    return b"".join(client.to_bytes(8, "big") for client in sorted(clients))


def _pair_seed(terms: Terms, private: bytes, public: bytes, one: int, other: int) -> bytes:
    """The seed of the mask that two clients share."""
    first, last = min(one, other), max(one, other)
    return sealing.derived(sealing.agreed(private, public), terms.session, _about(terms, "mask", first, last))


class Client:
    """A client's side of one session. Each method is one phase and is called once, in the order of PHASES.

    signing: 32 bytes, the seed of its signing key. known: client -> public signing key, of all clients, from a source that the
    server cannot change. Raises Aborted, and tells nothing more, when the server asks for what an honest one does not.
    """

    def __init__(self, terms: Terms, client: int, *, signing: bytes, known: Mapping[int, bytes], random: Randomness) -> None:
        self.terms, self.client, self.known, self.random = terms, client, known, random
        self._signing, self._phase = signing, 0
        self._sealing, self._masking, self._seed = random(KEY), random(KEY), random(KEY)
        self._adverts: dict[int, Advert] = {}
        self._held: dict[int, tuple[bytes, bytes]] = {}  # neighbour -> shares of its own mask's seed and of its masking key
        self._pairs: dict[int, bytes] = {}
        self._survivors: tuple[int, ...] = ()

    def _begin(self, phase: str) -> None:
        if self._phase == len(PHASES) or PHASES[self._phase] != phase:
            raise Aborted(f"client {self.client} was asked to {phase} a second time, or out of turn")
        self._phase += 1

    def advertise(self) -> Advert:
        self._begin("advertise")
        mine = Advert(sealing.public_of(self._sealing), sealing.public_of(self._masking), b"")
        return Advert(
            mine.sealing, mine.masking, sealing.signed_by(self._signing, _about(self.terms, "keys", self.client, mine.plain))
        )

    def share(self, adverts: Mapping[int, Advert]) -> dict[int, bytes]:
        """Neighbour -> the shares sealed for it. adverts: those of the client's neighbours."""
        self._begin("share")
        if len(adverts) < self.terms.threshold or self.client in adverts:
            raise Aborted(f"client {self.client} got the keys of {len(adverts)} neighbours, fewer than {self.terms.threshold}")
        keys = [key for advert in adverts.values() for key in (advert.sealing, advert.masking)]
        if len(set(keys)) < len(keys):
            raise Aborted(f"client {self.client} got one key twice")
        for other, advert in adverts.items():
            if not sealing.vouches(
                self.known.get(other, b""), advert.signature, _about(self.terms, "keys", other, advert.plain)
            ):
                raise Aborted(f"client {self.client} got keys of client {other} that client {other} did not sign")
        self._adverts = dict(adverts)
        places = {other: at for at, other in enumerate(sorted(adverts), 1)}
        own = sealing.shares_of(self._seed, self.terms.threshold, [*places.values()], self.random)
        key = sealing.shares_of(self._masking, self.terms.threshold, [*places.values()], self.random)
        return {
            other: self._sealed_for(other, place.to_bytes(4, "big") + own[place] + key[place])
            for other, place in places.items()
        }

    def _sealed_for(self, other: int, plain: bytes) -> bytes:
        nonce = self.random(12)
        return nonce + sealing.sealed(self._pair_key(other), nonce, plain, _about(self.terms, "share", self.client, other))

    def _pair_key(self, other: int) -> bytes:
        """The key under which shares are sealed between this client and another."""
        if other not in self._pairs:
            secret = sealing.agreed(self._sealing, self._adverts[other].sealing)
            about = _about(self.terms, "seal", min(self.client, other), max(self.client, other))
            self._pairs[other] = sealing.derived(secret, self.terms.session, about)
        return self._pairs[other]

    def mask(self, ciphers: Mapping[int, bytes], vector: Words) -> Words:
        """The masked vector. ciphers: neighbour -> the shares that it sealed for this client; a neighbour without is not masked
        with, because it dropped out."""
        self._begin("mask")
        if not ciphers.keys() <= self._adverts.keys() or len(ciphers) < self.terms.threshold:
            raise Aborted(f"client {self.client} got shares of {len(ciphers)} neighbours, fewer than {self.terms.threshold}")
        for other, cipher in ciphers.items():
            try:
                plain = sealing.opened(
                    self._pair_key(other), cipher[:12], cipher[12:], _about(self.terms, "share", other, self.client)
                )
            except ValueError as wrong:
                raise Aborted(f"client {self.client}, from client {other}: {wrong}") from None
            if len(plain) != 4 + 2 * SHARE:
                raise Aborted(f"client {self.client} got {len(plain)} bytes from client {other}, no shares")
            self._held[other] = (plain[:4] + plain[4 : 4 + SHARE], plain[:4] + plain[4 + SHARE :])
        masked = vector + sealing.mask(self._seed, vector.size)
        for other in sorted(self._held):
            pair = _pair_seed(self.terms, self._masking, self._adverts[other].masking, self.client, other)
            _add(masked, sealing.mask(pair, vector.size), self.client < other)
        return masked

    def confirm(self, survivors: Sequence[int]) -> bytes:
        """A signature under the list of clients whose vectors are in the sum."""
        self._begin("confirm")
        listed = set(survivors)
        if len(listed) != len(survivors) or self.client not in listed or not listed <= set(self.terms.clients):
            raise Aborted(f"client {self.client} got a list of survivors that it is not on once")
        if len(listed) < self.terms.least:
            raise Aborted(
                f"client {self.client}: a sum of {len(listed)} clients would tell too much; at least {self.terms.least}"
            )
        self._survivors = tuple(sorted(listed))
        return sealing.signed_by(self._signing, _about(self.terms, "survivors", _listed(self._survivors)))

    def unmask(self, signatures: Mapping[int, bytes]) -> Shares:
        """A share for each neighbour whose shares this client holds. signatures: those of neighbours under the same list."""
        self._begin("unmask")
        message = _about(self.terms, "survivors", _listed(self._survivors))
        alike = [
            other
            for other, signature in signatures.items()
            if other in self._held
            and other in self._survivors
            and sealing.vouches(self.known.get(other, b""), signature, message)
        ]
        if len(alike) < self.terms.threshold:
            raise Aborted(
                f"client {self.client}: {len(alike)} neighbours signed the same list of survivors, fewer than "
                f"{self.terms.threshold}"
            )
        live = set(self._survivors)
        own = {other: own for other, (own, _) in self._held.items() if other in live}
        keys = {other: key for other, (_, key) in self._held.items() if other not in live}
        self._held = {}
        return Shares(own, keys)


def _add(total: Words, term: Words, plus: bool) -> None:
    """Add a pairwise mask, modulo 2**64: the client with the smaller number adds it, the other takes it off."""
    (np.add if plus else np.subtract)(total, term, total)


@dataclass
class Server:
    """The server's side of one session. It is fed what clients say, phase by phase; a client that says nothing has dropped out.

    size: number of words of a vector. Memory: one vector, whatever the number of clients. Each `close_*` ends a phase and
    returns what each client is to be told; it raises Aborted if the session cannot go on.
    """

    terms: Terms
    size: int
    adverts: dict[int, Advert] = field(default_factory=dict)
    neighbours: dict[int, tuple[int, ...]] = field(default_factory=dict)
    ciphers: dict[int, Mapping[int, bytes]] = field(default_factory=dict)
    masked: list[int] = field(default_factory=list)
    signatures: dict[int, bytes] = field(default_factory=dict)
    told: dict[int, Shares] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._sum = np.zeros(self.size, np.uint64)

    def advertised(self, client: int, advert: Advert) -> None:
        if client not in self.terms.clients or len(advert.sealing) != KEY or len(advert.masking) != KEY:
            raise ProtocolError(f"client {client} advertised no keys of this session")
        self.adverts[client] = advert

    def close_advertise(self) -> dict[int, dict[int, Advert]]:
        """Client -> the keys of its neighbours."""
        self._enough(self.adverts, "advertised keys")
        self.neighbours = graph(self.terms, self.adverts)
        return {client: {other: self.adverts[other] for other in others} for client, others in self.neighbours.items()}

    def shared(self, client: int, ciphers: Mapping[int, bytes]) -> None:
        if ciphers.keys() != set(self.neighbours.get(client, ())):
            raise ProtocolError(f"client {client} sealed shares for others than its neighbours")
        self.ciphers[client] = ciphers

    def close_share(self) -> dict[int, dict[int, bytes]]:
        """Client -> neighbour -> what the neighbour sealed for the client."""
        self._enough(self.ciphers, "shared their secrets")
        return {
            client: {other: self.ciphers[other][client] for other in self.neighbours[client] if other in self.ciphers}
            for client in self.ciphers
        }

    def took(self, client: int, masked: Words) -> None:
        """Add a client's masked vector."""
        if client not in self.ciphers or client in self.masked or masked.shape != (self.size,):
            raise ProtocolError(f"client {client} sent a vector that is not expected of it")
        np.add(self._sum, masked, self._sum)
        self.masked.append(client)

    def close_mask(self) -> dict[int, tuple[int, ...]]:
        """Client -> the clients that are in the sum. Raises Aborted if those fall into parts that share no mask, because each
        part's sum would be told."""
        self._enough(self.masked, "sent their vectors")
        live = set(self.masked)
        reached, edge = {self.masked[0]}, [self.masked[0]]
        while edge:
            fresh = (live & set(self.neighbours[edge.pop()])) - reached
            reached |= fresh
            edge.extend(fresh)
        if reached != live:
            raise Aborted(f"of {len(live)} clients {len(reached)} share no mask with the others: their sum alone would be told")
        survivors = tuple(sorted(live))
        return dict.fromkeys(survivors, survivors)

    def confirmed(self, client: int, signature: bytes) -> None:
        if client not in self.masked:
            raise ProtocolError(f"client {client} is not in the sum, and signs for it")
        self.signatures[client] = signature

    def close_confirm(self) -> dict[int, dict[int, bytes]]:
        """Client -> its neighbours' signatures."""
        self._enough(self.signatures, "confirmed the list")
        return {
            client: {other: self.signatures[other] for other in self.neighbours[client] if other in self.signatures}
            for client in self.signatures
        }

    def unmasked(self, client: int, shares: Shares) -> None:
        near = set(self.neighbours.get(client, ())) & self.ciphers.keys()
        live = set(self.masked)
        if client not in self.signatures or shares.own.keys() != near & live or shares.keys.keys() != near - live:
            raise ProtocolError(f"client {client} told shares that are not expected of it")
        self.told[client] = shares

    def close_unmask(self) -> Words:
        """The sum of the vectors of all clients that are in it, modulo 2**64."""
        live, total = set(self.masked), self._sum.copy()
        for client in sorted(live):
            seed = self._joined(client, [shares.own for shares in self.told.values()])
            np.subtract(total, sealing.mask(seed, self.size), total)
        for client in sorted(self.ciphers.keys() - live):
            others = [other for other in self.neighbours[client] if other in live]
            if others:
                self._unpair(total, client, self._joined(client, [shares.keys for shares in self.told.values()]), others)
        return total

    def _joined(self, client: int, told: Iterable[Mapping[int, bytes]]) -> bytes:
        rows = [row[client] for row in told if client in row]
        shares = {int.from_bytes(row[:4], "big"): row[4:] for row in rows}
        if len(shares) < self.terms.threshold:
            raise Aborted(f"{len(shares)} shares of client {client}'s secret came, fewer than {self.terms.threshold}")
        try:
            return sealing.joined(dict(sorted(shares.items())[: self.terms.threshold]))
        except ValueError as wrong:
            raise Aborted(f"client {client}: {wrong}") from None

    def _unpair(self, total: Words, client: int, key: bytes, others: Iterable[int]) -> None:
        """Take off the pairwise masks that clients in the sum made with a client that dropped out."""
        if sealing.public_of(key) != self.adverts[client].masking:
            raise Aborted(f"the shares of client {client}'s key give another key")
        for other in others:
            seed = _pair_seed(self.terms, key, self.adverts[other].masking, client, other)
            _add(total, sealing.mask(seed, self.size), client < other)

    def _enough(self, came: Iterable[int], what: str) -> None:
        if (many := len(set(came))) < self.terms.least:
            raise Aborted(f"{many} clients {what}, fewer than {self.terms.least}")


def words_of(values: Numbers) -> Words:
    """Signed whole numbers as words modulo 2**64."""
    return values.view(np.uint64)


def numbers_of(words: Words) -> Numbers:
    """Words modulo 2**64 as the signed whole numbers that they stand for, if these are from -2**63 to below 2**63."""
    return words.view(np.int64)
