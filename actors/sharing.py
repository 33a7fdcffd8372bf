"""The actor's side of shared memory: weights read in place, contributions left where the coordinator reads them.

The one idea: it is only another way for the same bytes. Where a slot is not to be had in a short while, they go by the socket.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shoal.actors.labour import Product
from shoal.protocol.board import BoardReader
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.link import ZERO_COPY
from shoal.protocol.messages import Contribute
from shoal.protocol.ring import Ring

SLOTS = 4  # of contributions: one being written, one with the coordinator, and room for the next
FEW, LARGE = 2, 1 << 25  # slots where a contribution has more bytes than that: two more would cost more than they gain
WAIT = 0.25  # seconds for one of them to come back: by the socket the same arrays take both ends several times as much work


class Shared:
    """What this actor shares with a coordinator of its machine: nothing, until it joins one that offers to.

    `place` is for the worker's thread, the rest for the socket's. refused: why contributions go by the socket after all.
    """

    def __init__(self) -> None:
        self._board: BoardReader | None = None
        self._ring: Ring | None = None
        self._size = 0
        self.refused = ""

    def join(self, offer: tuple[int, ...]) -> None:
        """offer: the coordinator's board; () where it shares nothing. Raises ProtocolError where it cannot be opened."""
        if self._board is not None:
            self._board.close()
        self._board = BoardReader(offer) if offer else None

    def weights(self, layout: Layout, slot: tuple[int, ...]) -> Bundle:
        """Where they lie, until this actor says that it has moved on. Raises ProtocolError."""
        if self._board is None:
            raise ProtocolError("weights in shared memory that was not offered")
        return Bundle(layout, self._board.view(slot[:-1], slot[-1]))

    def place(self, product: Product, retains: bool) -> Product:
        """The product with its arrays in a slot of the ring, if there is one free in WAIT seconds. retains: and here."""
        bundle, message = product.bundle, product.message
        if bundle is None or not isinstance(message, Contribute) or bundle.data.nbytes < ZERO_COPY:
            return product
        if self._board is None or self.refused:
            return product
        ring = self._ring_for(bundle.data.nbytes)
        acquired = ring.acquire(WAIT) if ring else None
        if ring is None or acquired is None:
            return product
        slot, memory = acquired
        np.copyto(memory[: bundle.data.nbytes], bundle.data)
        token = ring.lend(slot, bundle.data.nbytes)
        return Product(replace(message, slot=(*ring.offer, *token)), bundle if retains else None, product.clients)

    def give_back(self, slot: tuple[int, ...]) -> None:
        if self._ring is not None and slot[: len(self._ring.offer)] == self._ring.offer:
            self._ring.give_back(slot[len(self._ring.offer) :])

    def _ring_for(self, nbytes: int) -> Ring | None:
        if self._ring is None:
            try:
                self._ring, self._size = Ring(SLOTS if nbytes <= LARGE else FEW, nbytes), nbytes
            except (UserError, ProtocolError, OSError) as refused:
                self.refused = str(refused)
        return self._ring if nbytes <= self._size else None

    def close(self) -> None:
        for memory in (self._board, self._ring):
            if memory is not None:
                memory.close()
