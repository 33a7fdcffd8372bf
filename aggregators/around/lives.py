"""The lives of clients' environments, kept by the coordinator so that episodes go on in another actor or life of the run.

The one idea: a trajectory brings what its client's next rollout goes on from, and the client's next task is briefed with it.
What a client is told changes in the step that its trajectory goes into, as its weights do, so a snapshot holds both alike.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from shoal.aggregators import Aggregator, State
from shoal.aggregators.around import Around
from shoal.envs.spaces import LIFE
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.work import Contribution, Moved, Task

CLIENTS, LIVES = "lives/clients", "lives/bytes"
ENOUGH = 3  # lives that a client tells before it has another actor, or its environments may have ended the last one's process
REPEATS = 8  # times that one life is briefed in a row: tasks that go out to a new actor together are all briefed


class Lives(Around):
    """An aggregator of trajectories that have an array `life` of `size` bytes. lives: by client, as of the last step.

    plain: the layout of a trajectory without it, if only some trajectories have it; the aggregator then sees this layout alone,
    a life is for the first brief of an actor, and a client that has another actor soon again begins anew. None: all have it."""

    def __init__(self, aggregator: Aggregator, size: int, plain: Layout | None = None) -> None:
        super().__init__(aggregator)
        self.layout, self.plain = Layout.of({LIFE: ("u1", (size,))}), plain
        self.lives: dict[int, Bundle] = {}
        self._came: dict[int, Bundle] = {}
        self._since: dict[int, int] = {}  # client -> lives that it told since its last brief
        self._given: dict[int, int] = {}  # client -> times that its last brief was given

    def brief(self, task: Task) -> Bundle | None:
        """The life of the task's client; None for an evaluation, and for a client that has none yet. If only some trajectories
        tell a life: None also for an actor that has had the client's brief, because it goes on with its own environments."""
        life = self.lives.get(task.clients[0]) if task.counts and len(task.clients) == 1 else None
        if life is None or self.plain is None:
            return life
        return life if not task.briefed and self._goes_on(task.clients[0]) else None

    def _goes_on(self, client: int) -> bool:
        """True if the client's next actor goes on with its environments; False, and they are forgotten, if that ended a process
        soon."""
        since = self._since.get(client, ENOUGH)
        if since >= ENOUGH:
            self._since[client], self._given[client] = 0, 1
            return True
        if since == 0 and self._given[client] < REPEATS:
            self._given[client] += 1
            return True
        del self.lives[client]
        self._since[client] = ENOUGH
        return False

    def fold(self, contribution: Contribution) -> None:
        told = self.plain is None or LIFE in contribution.bundle.layout.by_name
        self.aggregator.fold(self._without(contribution, self.plain) if told and self.plain else contribution)
        if told and len(contribution.task.clients) == 1:
            client = contribution.task.clients[0]
            self._came[client] = Bundle(self.layout, np.array(contribution.bundle[LIFE], np.uint8))
            self._since[client] = self._since.get(client, ENOUGH) + 1

    def _without(self, contribution: Contribution, plain: Layout) -> Contribution:
        rest = Bundle.zeros(plain)
        for name, array in rest.items():
            array[...] = contribution.bundle[name]
        return replace(contribution, work=replace(contribution.work, bundle=rest))

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
        self._came, self._since, self._given = {}, {}, {}
