"""Actors: the long-lived processes that do the tasks of a run.

The one idea: all that an actor needs of a job is a Worker, one function from weights and a task to arrays.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from shoal.protocol.errors import UserError, binds, signed
from shoal.protocol.work import Task, Work

if TYPE_CHECKING:
    from shoal.protocol.layout import Bundle


class Worker(Protocol):
    """The part of a job that does the tasks in an actor.

    A worker may also have run_all(weights, clients, task), which yields the work of each of the clients, in their order. It is
    called in the place of `run` if the task has no brief. What it raises is blamed on the client whose work is due. The work of
    a client must not depend on the other clients, because another actor may do them.

    A worker whose attribute `adds` is True has add_all(weights, clients, task, total). It is called in the place of both if the
    task has no brief and the arrays of its clients are summed: it adds each client's arrays to `total` (protocol/exact.py)
    before it yields the client's work, whose bundle is None. So what is trained together is added together.
    """

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        """The work of one client of the task. `weights` and `brief` are read-only, and valid only until this function returns.

        brief: the task's own arrays, from the aggregator's `brief(task)`; None if it has none for this task. A worker that
        never gets a brief may leave the parameter out.
        """
        ...


def check_runs(worker: Any, *before: object) -> None:
    """Raises UserError unless the worker has a function run(weights, client, task), perhaps with a brief. before: arguments in
    front of these: `self`, if `worker` is a class."""
    given = (*before, None, 0, None)
    if not (binds(run := getattr(worker, "run", None), *given) or binds(run, *given, None)):
        name = worker.__name__ if isinstance(worker, type) else type(worker).__name__
        found = f"{name} has no function run" if run is None else f"{name}'s is {signed(run)}"
        raise UserError(f"worker: expected a function run(weights, client, task) -> Work; {found}")


def close(worker: Worker) -> None:
    """Let go of what a worker holds (environments and their processes), if it has a function `close`. What that raises is
    printed: the work is done."""
    if callable(shut := getattr(worker, "close", None)):
        try:
            shut()
        except Exception as raised:  # noqa: BLE001  a worker is the user's code
            print(f"shoal: closing the worker raised {type(raised).__name__}: {raised}", file=sys.stderr)


def adds(worker: Worker) -> bool:
    """Return whether a worker adds the arrays of a task's clients to their sum itself, by `add_all`."""
    return getattr(worker, "adds", False) is True


def works_of(worker: Worker, weights: Bundle, task: Task, brief: Bundle | None) -> Iterator[Work]:
    """Yield the work of each client of the task, in their order: of `worker.run_all`, if it has that, else of `worker.run`."""
    if brief is None and callable(run_all := getattr(worker, "run_all", None)):
        yield from run_all(weights, task.clients, task)
    else:
        yield from (work_of(worker, weights, client, task, brief) for client in task.clients)


def work_of(worker: Worker, weights: Bundle, client: int, task: Task, brief: Bundle | None) -> Work:
    """The result of `worker.run`. The brief is passed only if there is one, so that a worker may lack the parameter."""
    return worker.run(weights, client, task) if brief is None else worker.run(weights, client, task, brief)
