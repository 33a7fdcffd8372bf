"""Weights on one machine: the coordinator writes them once, every actor reads them in place.

The one idea: a slot that a reader holds is never written, and some slot always has the newest version. A slow reader keeps its
own old slot and delays nobody. Only while slow readers hold every slot is there no draft: that version goes by the socket.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from shoal.protocol.errors import ProtocolError
from shoal.protocol.layout import Bytes
from shoal.protocol.memory import room
from shoal.protocol.shared import Offer, Slots

Token: TypeAlias = tuple[int, int]
"""(slot, generation): travels with the version in a Weights message."""


@dataclass(slots=True)
class _State:
    generation: int = 0
    holds: int = 0
    drafted: bool = False
    touched: bool = False


class Board:
    """Slots of `nbytes` for weights. Two of them, as many as prompt readers need, are in memory from the start.

    One thread owns the board; only writing into a drafted slot may happen on another. offer: for `BoardReader`. newest:
    (version, token) of the last publication; None before the first one, and while its own slot, which nobody holds, is
    written again. Raises UserError.
    """

    def __init__(self, nbytes: int, slots: int = 4) -> None:
        if slots < 2:
            raise ValueError(f"{slots} slots: one is read while another is written, so at least 2")
        self.newest: tuple[int, Token] | None = None
        self._slots = Slots.create(slots, nbytes, touched=2)
        self._states = [_State(touched=slot < 2) for slot in range(slots)]
        self._last = -1

    @property
    def offer(self) -> Offer:
        return self._slots.offer

    def draft(self) -> tuple[int, Bytes] | None:
        """A slot that nobody holds and its memory, uint8 [nbytes], to write on any thread; then commit or abandon it.
        None if every slot is held."""
        slot = self._free()
        if slot is None:
            return None
        state = self._states[slot]
        if self.newest is not None and self.newest[1][0] == slot:
            self.newest = None
        state.drafted = state.touched = True
        state.generation += 1
        self._slots.begin(slot, state.generation)
        return slot, self._slots.data(slot)

    def commit(self, slot: int, version: int) -> Token:
        """Make a slot, whose memory is written, the newest. Returns its token. version: above every earlier version."""
        state = self._drafted(slot)
        if version <= self._last:
            raise ValueError(f"version {version} after version {self._last}: versions only rise")
        self._slots.finish(slot, state.generation, version, self._slots.nbytes)
        state.drafted = False
        self._last = version
        token = (slot, state.generation)
        self.newest = version, token
        return token

    def abandon(self, slot: int) -> None:
        """Take back a draft that is not committed."""
        self._drafted(slot).drafted = False

    def hold(self, token: Token) -> None:
        """Count one reader in. Call it before the token is sent, once for each reader that the token goes to."""
        self._current(token).holds += 1

    def release(self, token: Token) -> None:
        """Count one reader out, which has newer weights or has left."""
        state = self._current(token)
        if not state.holds:
            raise ValueError(f"slot {token[0]} released more often than held")
        state.holds -= 1

    def close(self) -> None:
        self._slots.close()

    def _free(self) -> int | None:
        """The lowest slot that nobody holds, because it is in memory already; the newest only if there is no other."""
        keep = -1 if self.newest is None else self.newest[1][0]
        free = [n for n, state in enumerate(self._states) if not state.holds and not state.drafted]
        in_order = sorted(free, key=lambda slot: (slot == keep, slot))
        return next((slot for slot in in_order if self._fits(self._states[slot])), None)

    def _fits(self, state: _State) -> bool:
        return state.touched or room().nbytes > self._slots.nbytes

    def _drafted(self, slot: int) -> _State:
        if not self._states[slot].drafted:
            raise ValueError(f"slot {slot} is not drafted")
        return self._states[slot]

    def _current(self, token: Token) -> _State:
        slot, generation = token
        state = self._states[slot]
        if state.generation != generation or state.drafted:
            raise ValueError(f"token {token} is of weights that are no longer there")
        return state


class BoardReader:
    """The board of another process, to read. Raises ProtocolError if the offer cannot be taken up: weights then come by the
    socket."""

    def __init__(self, offer: tuple[int, ...]) -> None:
        self._slots = Slots.open(offer)

    def view(self, token: tuple[int, ...], version: int) -> Bytes:
        """The weights in place, read-only, uint8 [nbytes]; they stay until this actor's next Have. Raises StaleError."""
        if len(token) != 2 or not 0 <= token[0] < self._slots.count:
            raise ProtocolError(f"weights lie at (slot, generation) with slot below {self._slots.count}, not at {token!a}")
        return self._slots.holds(token[0], token[1], version)

    def close(self) -> None:
        """Close this process's hold. Views may live on, and keep the memory."""
        self._slots.close()
