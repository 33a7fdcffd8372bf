"""The actor's side of shared memory: weights read in place, contributions left where the coordinator reads them.

The one idea: shared memory is another way for the same bytes. If no slot is free within WAIT seconds, they go by the socket.
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

SLOTS = 4  # slots for contributions: one being written, one with the coordinator, and two for the next
FEW, LARGE = 2, 1 << 25  # FEW slots if a contribution has more than LARGE bytes: more memory would cost more than it gains
WAIT = 0.25  # seconds to wait for a free slot: by the socket, arrays take both ends several times as much work


class Shared:
    """The memory that this actor shares with a coordinator on its machine: none, until it joins a coordinator that offers some.

    Only the worker's thread calls `place`; the socket's thread calls the other functions. refused: why contributions go by the
    socket after all; "" if they do not.
    """

    def __init__(self) -> None:
        self._board: BoardReader | None = None
        self._ring: Ring | None = None
        self._size = 0
        self.refused = ""

    def join(self, offer: tuple[int, ...]) -> None:
        """Open the board that a coordinator offers. offer: the board; (): no shared memory. Raises ProtocolError if the board
        cannot be opened."""
        if self._board is not None:
            self._board.close()
        self._board = BoardReader(offer) if offer else None

    def weights(self, layout: Layout, slot: tuple[int, ...]) -> Bundle:
        """The weights in place. They stay valid until a Have of this actor says that it has moved on. Raises ProtocolError."""
        if self._board is None:
            raise ProtocolError("the coordinator sent weights in shared memory, which its Welcome did not offer")
        return Bundle(layout, self._board.view(slot[:-1], slot[-1]))

    def place(self, product: Product, retains: bool) -> Product:
        """The product with its arrays in a slot of the ring; unchanged if no slot is free within WAIT seconds. retains: True if
        the actor keeps its own copy too."""
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
