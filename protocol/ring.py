"""Contributions on one machine: an actor's worker writes them where the coordinator reads them.

The one idea: a slot has one owner at a time, and a token in a control message hands the slot over. So a contribution is copied
nowhere between the worker that makes it and the sum that it is folded into.

A slot stays under the actor's control until it is folded: a hostile or faulty actor can change it at any time, so also between
the check (coordinator/checks.py) and the addition. So the sum is checked again: a sum counts how far its entries may reach,
and a step whose sum holds NaN, or an entry beyond that count, ends the run and publishes nothing (aggregators/fedavg.py).
Within that limit such an actor sends whatever numbers it likes, as every client can, even beyond a norm bound; the actor is a
process of the coordinator's own user, who could do worse. If a norm bound must hold against actors, arrays go by the socket.
"""

from __future__ import annotations

import queue
from typing import TypeAlias

from shoal.protocol.errors import ProtocolError
from shoal.protocol.layout import Bytes
from shoal.protocol.shared import Offer, Slots

Token: TypeAlias = tuple[int, int, int]
"""(slot, generation, bytes): travels in a Contribute message."""


class Ring:
    """An actor's slots of `nbytes`, all in memory from the start. offer: for `RingReader`. Raises UserError.

    One thread may acquire, write and lend while another gives back.
    """

    def __init__(self, slots: int, nbytes: int) -> None:
        self._slots = Slots.create(slots, nbytes, touched=slots)
        self._generations = [0] * slots
        self._lent: dict[int, Token] = {}
        self._acquired: set[int] = set()
        self._free: queue.LifoQueue[int] = queue.LifoQueue()  # the slot that came back last is still in a cache
        for slot in reversed(range(slots)):
            self._free.put(slot)

    @property
    def offer(self) -> Offer:
        return self._slots.offer

    def acquire(self, wait: float = 0.0) -> tuple[int, Bytes] | None:
        """A slot and its memory to write, uint8 [nbytes], 64-byte aligned; None if no slot comes free in `wait` seconds."""
        try:
            slot = self._free.get(block=wait > 0, timeout=wait)
        except queue.Empty:
            return None
        self._acquired.add(slot)
        self._generations[slot] += 1
        self._slots.begin(slot, self._generations[slot])
        return slot, self._slots.data(slot)

    def lend(self, slot: int, nbytes: int) -> Token:
        """Lend a slot whose first `nbytes` are written. Returns its token. The slot must not be touched until it is back."""
        if nbytes > self._slots.nbytes:
            raise ValueError(f"{nbytes:,} bytes do not fit a slot of {self._slots.nbytes:,}")
        self._acquired.remove(slot)
        token = (slot, self._generations[slot], nbytes)
        self._slots.finish(slot, self._generations[slot], 0, nbytes)
        self._lent[slot] = token
        return token

    def give_back(self, token: tuple[int, ...]) -> None:
        """Take a lent slot back. Raises ProtocolError for a token that is not lent, so that a repeat does no harm."""
        if not token or self._lent.get(token[0]) != token:
            raise ProtocolError(f"slot {token!a} is given back but not lent")
        del self._lent[token[0]]
        self._free.put(token[0])

    def close(self) -> None:
        self._slots.close()


class RingReader:
    """An actor's ring seen from the coordinator, which trusts only its own record of the slots that are lent.

    Raises ProtocolError if the offer cannot be taken up: contributions then come by the socket.
    """

    def __init__(self, offer: tuple[int, ...]) -> None:
        self._slots = Slots.open(offer)
        self._held: dict[int, Token] = {}
        self._returned = [0] * self._slots.count  # generation at which each slot was given back last

    def view(self, token: tuple[int, ...]) -> Bytes:
        """The lent bytes in place, read-only; the same token again gives the same bytes. Raises ProtocolError."""
        slot, generation, nbytes = checked = self._checked(token)
        if self._held.get(slot, checked) != checked:
            raise ProtocolError(f"slot {slot} is lent as {checked} while {self._held[slot]} was not given back")
        if generation <= self._returned[slot]:
            raise ProtocolError(f"slot {slot} was given back at generation {self._returned[slot]}: {generation} is old")
        found = self._slots.holds(slot, generation, 0)
        if found.nbytes != nbytes:
            raise ProtocolError(f"slot {slot} is lent with {nbytes} bytes and says {found.nbytes}")
        self._held[slot] = checked
        return found

    def done(self, token: tuple[int, ...]) -> None:
        """Strike a token from the record, folded or not wanted. The message that ends the task tells the actor."""
        slot, generation, _ = checked = self._checked(token)
        if self._held.pop(slot, None) == checked:
            self._returned[slot] = generation

    def close(self) -> None:
        """Close the coordinator's hold. Views may live on, and keep the memory."""
        self._slots.close()

    def _checked(self, token: tuple[int, ...]) -> Token:
        if len(token) != 3 or not 0 <= token[0] < self._slots.count or not 0 <= token[2] <= self._slots.nbytes:
            limits = f"slot below {self._slots.count}, bytes up to {self._slots.nbytes}"
            raise ProtocolError(f"a contribution lies at (slot, generation, bytes) with {limits}, not at {token!a}")
        return token[0], token[1], token[2]
