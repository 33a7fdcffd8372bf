"""dask's graphs in a `shoal.Pool`: `dask.config.set(scheduler=shoal.dask_get(pool))`.

The one idea: dask's own loop decides what is next, depth first, and lets go of what nobody needs any more; here only its tasks
are made elsewhere. So its callbacks and its ways with keys stay, and a dead process costs a task's time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from shoal.protocol.errors import UserError, signed
from shoal.protocol.trusted import opened
from shoal.tasks.pool import Pool
from shoal.tasks.shared import Shared

AHEAD = 2  # tasks that are handed out for each process: one that is computed, and one that waits behind it
FOR_OTHERS = ("num_workers", "pool")  # arguments of `compute` that are for dask's own schedulers


def dask_get(pool: Pool) -> Callable[..., Any]:
    """A scheduler for dask: a function (graph, keys) to the values of these keys, whose tasks run in a pool's processes.

    An exception of a task is raised with a note that names the task's key; tasks that are under way are then ended. Raises
    UserError if dask is not installed, or `pool` is no pool.
    """
    if not isinstance(pool, Pool):
        raise UserError(f"dask_get({signed(pool)}): expected a shoal.Pool")
    try:
        from dask.local import get_async
    except ModuleNotFoundError:
        raise UserError("dask_get needs dask: pip install dask") from None

    loop: Callable[..., Any] = get_async

    def get(dsk: Any, keys: Any, **how: Any) -> Any:
        handed = Handed(pool)
        try:
            ahead = AHEAD * pool.actors
            return loop(handed.submit, ahead, dsk, keys, **{name: how[name] for name in how if name not in FOR_OTHERS})
        except BaseException:
            handed.end()
            raise

    return get


class Handed:
    """The tasks of one graph that are under way."""

    def __init__(self, pool: Pool) -> None:
        self._pool, self._shared = pool, Shared()
        self._futures: dict[Future[Any], object] = {}  # and what each reads, which must be held until it is done

    def submit(self, function: Callable[..., Any], tasks: Sequence[Any]) -> Future[Any]:
        """Hand out what dask would submit to an executor. tasks: tuples that begin with (key, (task, its inputs))."""
        parcel, held = self._shared.parcel((function, tasks))
        future: Future[Any] = self._pool.submit(compute, parcel.data)
        self._futures[future] = (parcel, held)
        future.add_done_callback(partial(self._futures.pop))
        return future

    def end(self) -> None:
        """End the tasks that are under way."""
        for future in [one for one in list(self._futures) if not one.cancel()]:
            future.kill()  # type: ignore[attr-defined]  # all are the pool's


def compute(data: bytes) -> Any:
    """Compute tasks of a graph, in an actor. data: the parcel of (dask's function, tasks)."""
    function, tasks = opened(data)
    try:
        return function(tasks)
    except Exception as error:
        error.add_note(f"in the task {', '.join(repr(one[0]) for one in tasks)} of a dask graph")
        raise
