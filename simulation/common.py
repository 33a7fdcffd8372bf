"""Memory that processes of one simulated machine share: slots of weights, and slots of contributions.

The one idea: nothing is written in it. What can go wrong is that a slot is written anew while another process reads it, and
that shows in who has a slot and when.
"""

from __future__ import annotations

from typing import Any

from shoal.coordinator.sharing import Sharing
from shoal.protocol.board import Board, _State
from shoal.simulation.disk import Model

SLOTS = 2  # of weights
RING = 2  # of an actor's contributions


class Blank:
    """Slots without memory: all of them are the same bytes."""

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
        self._digests, self._last = False, -1


class Common:
    """What a coordinator shares with the actors of its machine. tokens of weights are (slot, generation)."""

    def __init__(self) -> None:
        self.board = Blackboard()
        self.sharing = Sharing(self.board)

    def holds(self, token: tuple[int, ...]) -> bool:
        """Do the weights that this token stands for lie there still, as they were?"""
        state = self.board._states[token[0]]
        return state.generation == token[1] and not state.drafted
