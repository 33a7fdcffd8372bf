"""The long-lived processes that do the work: clients that train, environments that run."""

from __future__ import annotations

from typing import Protocol

from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Work


class Worker(Protocol):
    """What an actor does with weights."""

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        """Work for one client of the task. `weights` and `brief` are read-only and only valid until this returns.

        brief: the task's own arrays, where the aggregator has some for it. A worker that never gets any may leave the
        parameter out.
        """
        ...


def work_of(worker: Worker, weights: Bundle, client: int, task: Task, brief: Bundle | None) -> Work:
    """The worker's work. A worker is told of a brief only where there is one, so that it need not take any."""
    return worker.run(weights, client, task) if brief is None else worker.run(weights, client, task, brief)
