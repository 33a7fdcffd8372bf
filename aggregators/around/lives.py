"""The lives of clients' environments, kept by the coordinator so that episodes go on in another actor or life of the run.

The one idea: a trajectory brings what its client's next rollout goes on from, and the client's next task is briefed with it.
What a client is told changes in the step that its trajectory goes into, as its weights do, so a snapshot holds both alike.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shoal.aggregators import Aggregator, State
from shoal.aggregators.around import Around
from shoal.envs.spaces import LIFE
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.work import Contribution, Moved, Task

CLIENTS, LIVES = "lives/clients", "lives/bytes"


class Lives(Around):
    """An aggregator of trajectories that have an array `life` of `size` bytes. lives: by client, as of the last step."""

    def __init__(self, aggregator: Aggregator, size: int) -> None:
        super().__init__(aggregator)
        self.layout = Layout.of({LIFE: ("u1", (size,))})
        self.lives: dict[int, Bundle] = {}
        self._came: dict[int, Bundle] = {}

    def brief(self, task: Task) -> Bundle | None:
        """The life of the task's client; None for an evaluation, and for a client that has none yet."""
        return self.lives.get(task.clients[0]) if task.counts and len(task.clients) == 1 else None

    def fold(self, contribution: Contribution) -> None:
        self.aggregator.fold(contribution)
        if len(contribution.task.clients) == 1:
            self._came[contribution.task.clients[0]] = Bundle(self.layout, np.array(contribution.bundle[LIFE], np.uint8))

    def step(self) -> Moved:
        moved = self.aggregator.step()
        self.lives.update(self._came)
        self._came = {}
        return moved

    def state(self) -> State:
        clients = sorted(self.lives)
        rows: npt.NDArray[np.uint8] = np.zeros((len(clients), self.layout.nbytes), np.uint8)
        for row, client in zip(rows, clients, strict=True):
            row[:] = self.lives[client].data
        return {**self.aggregator.state(), CLIENTS: np.array(clients, np.int64), LIVES: rows}

    def load(self, weights: Bundle, state: State) -> None:
        """Go on from a snapshot. One without lives, or with lives of another size, has environments begin anew."""
        self.aggregator.load(weights, {name: array for name, array in state.items() if name not in (CLIENTS, LIVES)})
        rows = state.get(LIVES, np.zeros((0, 0), np.uint8))
        fits = rows.shape[1:] == (self.layout.nbytes,)
        told = zip(state.get(CLIENTS, ()), rows, strict=True) if fits else ()
        self.lives = {int(client): Bundle(self.layout, row.copy()) for client, row in told}
        self._came = {}
