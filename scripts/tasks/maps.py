"""The results of a map: an iterator that forgets what was taken from it, and makes room for further calls.

The one idea: a map's results are taken one after another, so its calls are made no further ahead than its user bears: results
of some bytes, or a number of calls.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, as_completed
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from shoal.coordinator.deciding.plans.tickets import Batch
from shoal.coordinator.deciding.resources import Need
from shoal.protocol.errors import UserError
from shoal.tasks.futures import Result
from shoal.tasks.running import Running

if TYPE_CHECKING:
    from shoal.tasks.pool import Pool

T = TypeVar("T")
R = TypeVar("R")


class Results(Iterator[T]):
    """The results of a map, one after another."""

    def __init__(
        self,
        each: Iterator[T],
        futures: list[Result[T]] | None,
        batch: Batch,
        pool: weakref.ref[Pool],
        whole: Callable[[], Future[list[T]]] | None = None,
    ) -> None:
        self._each, self._futures, self._batch, self._pool, self._whole = each, futures or [], batch, pool, whole
        self._fresh, self._all = True, futures is not None or whole is not None

    def __iter__(self) -> Iterator[T]:
        self._begin()
        return self._each

    def __next__(self) -> T:
        self._begin()
        return next(self._each)

    def _begin(self) -> None:
        if self._fresh:
            self._fresh, self._futures = False, []  # or results that were taken would be held

    def then(self, fn: Callable[..., R], /, *args: Any, **how: Any) -> Result[R]:
        """Call `fn` with the list of all results, when they are there. Returns its future. args, how: as for `submit`. Raises
        UserError if a result was taken before, the map has a buffersize, or the pool is gone."""
        if not self._all:
            raise UserError("then: a map with buffersize makes its calls as results are taken; leave buffersize out")
        if not self._fresh or (pool := self._pool()) is None:
            raise UserError("then: ask for it before a result of the map is taken, and while its pool is there")
        self._batch.room = sys.maxsize  # all results are needed at once
        return pool.submit(fn, self._whole() if self._whole else list(self._futures), *args, **how)


def each_of(futures: list[Result[T]], ends_at: float | None, batch: Batch, running: Running, ordered: bool) -> Iterator[T]:
    """The results, each of which is forgotten here once it is taken."""
    left = len(futures)
    timeout = None if ends_at is None else ends_at - time.monotonic()
    many = set[Result[T]]() if ordered else set(futures)
    order = _in_order(futures) if ordered else _as_they_come(many, timeout)
    try:
        while left:
            left -= 1
            yield _taken(order, ends_at, batch, running)
    finally:
        for future in futures if ordered else many:
            future.cancel()


def _in_order(futures: list[Result[T]]) -> Iterator[Result[T]]:
    futures.reverse()
    while futures:
        yield futures.pop()


def _as_they_come(rest: set[Result[T]], timeout: float | None) -> Iterator[Future[T]]:
    for future in as_completed(set(rest), timeout):
        rest.discard(future)
        yield future


def _taken(order: Iterator[Future[T]], ends_at: float | None, batch: Batch, running: Running) -> T:
    future = next(order)
    try:
        result = future.result(None if ends_at is None else ends_at - time.monotonic())
    except TimeoutError:
        future.cancel()
        raise
    finally:
        if isinstance(future, Result) and future.done():
            full = batch.full
            batch.taken += future.nbytes
            if full and not batch.full:
                running.nudge()
        del future  # an exception's traceback holds this frame, and the future holds the exception
    return result


def window(
    left: deque[Result[T]], more: Callable[[], Result[T] | None], ends_at: float | None, ordered: bool
) -> Iterator[Future[T]]:
    """The futures of a map with a buffersize, for each of which another call is made. left: those that were not given."""
    done = SimpleQueue[Future[T]]()
    for future in () if ordered else left:
        future.add_done_callback(done.put)
    while left:
        if (new := more()) is not None:
            left.append(new)
            if not ordered:
                new.add_done_callback(done.put)
        del new  # or its result would be held
        if ordered:
            yield left.popleft()
        else:
            yield _first(left, done, ends_at)


def _first(left: deque[Result[T]], done: SimpleQueue[Future[T]], ends_at: float | None) -> Future[T]:
    try:
        first = done.get(timeout=None if ends_at is None else max(0.0, ends_at - time.monotonic()))
    except Empty:
        raise TimeoutError from None
    left.remove(first)  # type: ignore[arg-type]
    return first


def buffered(
    left: deque[Result[T]], order: Iterator[Future[T]], ends_at: float | None, batch: Batch, running: Running
) -> Iterator[T]:
    try:
        while left:
            yield _taken(order, ends_at, batch, running)
    finally:
        for future in left:
            future.cancel()


def room_of(keep: int | str) -> int:
    """Bytes of results that may wait. Raises UserError."""
    try:
        nbytes = Need(memory=keep).nbytes
    except UserError:
        nbytes = 0
    if nbytes < 1:
        raise UserError(f"keep={keep!r}: must be bytes above 0, as a number or as text like '2G', or 'disk'")
    return nbytes
