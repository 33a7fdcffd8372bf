"""Memory that processes of one simulated machine share: slots of weights, and slots of contributions.

The one idea: no bytes are written in this memory. The only possible fault is that a slot is written anew while another process
reads it, and the times at which processes hold slots show that fault.
"""

from __future__ import annotations

from typing import Any

from shoal.coordinator.sharing import Sharing
from shoal.protocol.board import Board, _State
from shoal.simulation.disk import Model

SLOTS = 2  # of weights
RING = 2  # of an actor's contributions


class Blank:
    """Slots without memory of their own: all slots are the same bytes."""

    offer = (0, 0, 0, 0, 0, 0)
    nbytes = Model.data.nbytes

    def __init__(self) -> None:
        self._data = Model.data.copy()

    def data(self, slot: int) -> Any:
        return self._data

    def begin(self, *_: int) -> None:
        return

    finish = begin


class Blackboard(Board):
    """The production's board, over blank slots."""

    def __init__(self) -> None:
        self.newest = None
        self._slots: Any = Blank()
        self._states = [_State(touched=True) for _ in range(SLOTS)]
        self._last = -1


class Scarce(Sharing):
    """The production's sharing, which does not lend every third version, so that changes meet shared weights."""

    def lend(self, session: bytes, version: int) -> tuple[int, ...]:
        return super().lend(session, version) if version % 3 else ()


class Common:
    """Memory that a coordinator shares with the actors of its machine. Tokens of weights are (slot, generation). scarce: not
    every version is lent."""

    def __init__(self, scarce: bool) -> None:
        self.board = Blackboard()
        self.sharing = (Scarce if scarce else Sharing)(self.board)

    def holds(self, token: tuple[int, ...]) -> bool:
        """Return whether the token's weights still lie in their slot, unchanged."""
        state = self.board._states[token[0]]
        return state.generation == token[1] and not state.drafted
