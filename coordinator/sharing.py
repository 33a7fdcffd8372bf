"""The coordinator's side of shared memory: weights written once for this machine's actors, contributions read in place.

The one idea: a token is held for a reader before it is sent, and released when that reader has moved on or is gone; weights
that find no slot go by the socket, so that no actor ever waits for a slot.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from shoal.protocol.board import Board, Token
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.layout import Bytes
from shoal.protocol.link import ZERO_COPY
from shoal.protocol.ring import RingReader
from shoal.protocol.shared import available

OFFER = 6  # numbers of a ring's offer, before the token's three
SLOTS = 8  # of weights: only slots held at once use memory; with 4 slots, one stopped reader slowed ten others to a third


@dataclass(slots=True)
class Sharing:
    """Slots for weights, and the sessions that hold each slot. Used by the socket thread alone. board: None if weights are not
    shared; then there is never a draft, and nothing is published."""

    board: Board | None = None
    tokens: dict[bytes, list[tuple[int, Token]]] = field(default_factory=dict)  # session -> versions and tokens, oldest first
    rings: dict[tuple[int, ...], RingReader] = field(default_factory=dict)
    published: tuple[int, Token] | None = None
    written: int = -1  # the version that the published slot was written as
    drafted: int | None = None  # the slot of the next version; None if there is no draft

    @property
    def offer(self) -> tuple[int, ...]:
        return self.board.offer if self.board else ()

    def begin(self, version: int, weights: Bytes) -> None:
        """Copy the weights that a run begins with, before any actor is spoken to. This thread copies no other weights."""
        if (room := self.draft()) is not None:
            np.copyto(room, weights)
            self.publish(version)

    def draft(self) -> Bytes | None:
        """A slot that no actor reads, uint8, as large as the weights, to be written on any thread before `publish`; None if no
        slot is free."""
        slot, memory = (self.board and self.board.draft()) or (None, None)
        self.drafted = slot
        if self.board and self.board.newest is None:  # the only free slot was the published version's
            self.published = None
        return memory

    def publish(self, version: int, moved: bool = True) -> None:
        """Publish the last draft as `version`; if there was no draft, this version goes by the socket. moved: False if the
        published weights are those of `version` too: the draft is abandoned."""
        drafted, self.drafted = self.drafted, None
        token = self.published[1] if self.published else None
        if moved:
            token = self.board.commit(drafted, version) if self.board and drafted is not None else None
            self.written = version
        elif self.board and drafted is not None:
            self.board.abandon(drafted)
        self.published = None if token is None else (version, token)

    def keep(self, session: bytes, version: int) -> None:
        """Note that this session, if it looks at the published weights, calls them `version` from now on."""
        out = self.published[1] if self.published else None
        if held := self.tokens.get(session):
            self.tokens[session] = [(version if token == out else label, token) for label, token in held]

    def lend(self, session: bytes, version: int) -> tuple[int, ...]:
        """The place where this session finds `version`: a token, and the version that the slot was written as; () if the
        weights must go by the socket."""
        if not (self.board and self.published and self.published[0] == version):
            return ()
        token = self.published[1]
        self.board.hold(token)
        self.tokens.setdefault(session, []).append((version, token))
        return (*token, self.written)

    def moved_on(self, session: bytes, using: int | None) -> None:
        """Release versions before `using`, which this session does not look at any more; all if None: the session is gone."""
        held = self.tokens.pop(session, [])
        while self.board and held and (using is None or held[0][0] < using):
            self.board.release(held.pop(0)[1])
        if held:
            self.tokens[session] = held

    def contribution(self, slot: tuple[int, ...]) -> Bytes:
        """The arrays that lie in an actor's ring. Raises ProtocolError."""
        offer, token = slot[:OFFER], slot[OFFER:]
        if offer not in self.rings:
            self.rings[offer] = RingReader(offer)
        return self.rings[offer].view(token)

    def done(self, slot: tuple[int, ...]) -> None:
        """Give the slot back: its arrays are folded in, or refused."""
        self.rings[slot[:OFFER]].done(slot[OFFER:])

    def close(self) -> None:
        for ring in self.rings.values():
            ring.close()
        if self.board:
            self.board.close()


def sharing(nbytes: int) -> tuple[Sharing | None, str]:
    """Shared memory for weights of `nbytes`, and ""; or None, and the reason, which is "" for a model too small for it."""
    if nbytes < ZERO_COPY:
        return None, ""  # a model this small is cheaper in a frame
    if why := available():
        return None, why
    try:
        return Sharing(Board(nbytes, slots=SLOTS)), ""
    except (UserError, ProtocolError, OSError) as refused:
        return None, str(refused)
