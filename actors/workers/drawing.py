"""A user's own worker, whose draws from the global generators are functions of the task.

The one idea: a forked actor has its parent's generators, and a task's draws would else depend on what its actor did before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shoal.actors import Worker, work_of
from shoal.actors.workers.around import Around
from shoal.protocol import draws
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.work import Task, Work


class Drawing(Around):
    """Another worker. Before each client of a task the global generators of `random`, numpy and torch are set from (seed,
    client, the numbers of the task's draws: its version, say). Costs 25 us.

    layouts: the weights' layout -> the layouts that a contribution may have; another one is refused here, where both are known,
    with the name of an array. None: any.
    """

    def __init__(self, worker: Worker, seed: int, layouts: Callable[[Layout], Sequence[Layout]] | None = None) -> None:
        super().__init__(worker)
        self.seed, self.layouts = seed, layouts

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        draws.set_globals(self.seed, "work", *task.draws(client))
        work = work_of(self.worker, weights, client, task, brief)
        if self.layouts and task.counts and isinstance(work, Work) and isinstance(work.bundle, Bundle):
            self._check(work.bundle.layout, self.layouts(weights.layout))
        return work

    def _check(self, layout: Layout, known: Sequence[Layout]) -> None:
        if known and all(each.digest != layout.digest for each in known):
            differs = known[0].difference(layout)
            raise UserError(f"a worker's Work (there) has other arrays than a contribution must have (here): {differs}")
