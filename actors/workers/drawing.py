"""A user's own worker, whose draws from the global generators are functions of the task.

The one idea: a forked actor has its parent's generators, and a task's draws would else depend on what its actor did before.
"""

from __future__ import annotations

from shoal.actors import Worker, close, work_of
from shoal.protocol import draws
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Work


class Drawing:
    """Another worker. Before each client of a task the global generators of `random`, numpy and torch are set from (seed,
    client, the numbers of the task's draws: its version, say). Costs 25 us."""

    def __init__(self, worker: Worker, seed: int) -> None:
        self.worker, self.seed = worker, seed

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        draws.set_globals(self.seed, "work", *task.draws(client))
        return work_of(self.worker, weights, client, task, brief)

    def close(self) -> None:
        close(self.worker)
