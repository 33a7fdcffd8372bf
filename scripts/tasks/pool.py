"""`shoal.Pool`: an executor of `concurrent.futures` whose workers are actors.

The one idea: a call is a task like any other, so what holds for the tasks of a run holds for calls: a worker that dies is
replaced, only the call that it was at is blamed, and each result is counted once.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, as_completed
from functools import partial
from typing import Any, ParamSpec, TypeVar

from shoal.coordinator.deciding.plans.tickets import Batch, Ticket
from shoal.protocol.errors import UserError, signed
from shoal.protocol.trusted import Parcel, by_value, pack, pack_arguments
from shoal.runs.threads import cores
from shoal.tasks.futures import Result
from shoal.tasks.running import Entry, Running, started

P = ParamSpec("P")
T = TypeVar("T")
ROOM = 1 << 28  # bytes of results of a map that nobody has taken, from which on no more of its calls are given out
PLAIN = "auto"


class Pool(Executor):
    """Calls functions in `actors` processes, which are forked from this program when the pool is made.

    actors: number of processes; "auto": one for each core that this program may use. retries: times that a call may be tried
    again after the process that was at it has ended. Make the pool when the functions that it is to call are defined: what is
    defined later, and lambdas, need cloudpickle (shoal[tasks]).

    Arguments and results are copied as `concurrent.futures.ProcessPoolExecutor` copies them; arrays of 64 KiB and more through
    shared memory. An exception of a call is raised by `result()`, with the traceback in the other process as its cause.
    """

    def __init__(self, actors: int | str = PLAIN, *, retries: int = 2) -> None:
        many = cores() if actors == PLAIN else actors
        if isinstance(many, bool) or not isinstance(many, int) or many < 1:
            raise UserError(f'actors={actors!r}: must be a whole number from 1, or "auto" for one actor a core')
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise UserError(f"retries={retries!r}: must be a whole number from 0")
        self._retries = retries
        self._there = _defined()
        self._running = started(many)
        self._numbers = itertools.count()
        self._functions: weakref.WeakKeyDictionary[Any, Parcel] = weakref.WeakKeyDictionary()
        self._dropped = weakref.finalize(self, self._running.close)
        self._dropped.atexit = False
        # as concurrent.futures does: before threads are waited for, and before functions of atexit
        self._exits = partial(_end, weakref.ref(self._running))
        threading._register_atexit(self._exits)  # type: ignore[attr-defined]

    def submit(  # type: ignore[override]  # names of its own
        self,
        fn: Callable[..., T],
        /,
        *args: Any,
        priority: float = 0.0,
        retries: int | None = None,
        once: bool = False,
        **kwargs: Any,
    ) -> Result[T]:
        """Call `fn(*args, **kwargs)` in another process. Returns the future of its result.

        priority: calls of higher priority begin first; a minute of waiting counts as one. retries: as in Pool, for this call.
        once: the call is never begun twice: if its process ends, the future raises WorkerLost at once. Raises UserError if an
        argument cannot travel, RuntimeError after `shutdown`.
        """
        entry = self._entry(fn, args, kwargs, priority, self._retries if retries is None else retries, once, None)
        self._running.offer([entry])
        return entry.future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | str = PLAIN,
        ordered: bool = True,
        priority: float = 0.0,
        retries: int | None = None,
        once: bool = False,
    ) -> Iterator[T]:
        """Call `fn` for each item, as the built-in map does, and return an iterator of the results.

        Calls that are short travel several at a time by themselves: `chunksize` is for programs written for other pools, and is
        not looked at. ordered: False gives each result as soon as it is there. While results of 256 MB wait to be taken,
        further calls of this map wait. timeout: seconds from now, after which the iterator raises TimeoutError.
        """
        if chunksize != PLAIN and not (isinstance(chunksize, int) and chunksize >= 1):
            raise ValueError(f'chunksize={chunksize!r}: must be a whole number from 1, or "auto"')
        ends_at = None if timeout is None else time.monotonic() + timeout
        batch, most = Batch(ROOM), self._retries if retries is None else retries
        entries = [self._entry(fn, args, {}, priority, most, once, batch) for args in zip(*iterables, strict=False)]
        self._running.offer(entries)
        return _results([entry.future for entry in entries], ends_at, batch, self._running, ordered)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. wait: return when all calls are done and no process is left. cancel_futures: calls that have not
        begun are cancelled."""
        self._running.close(cancel_futures)
        if wait and threading.current_thread() is not self._running:
            self._running.join()

    def status(self) -> str:
        """What the pool does, in words: a line for each actor, and why calls wait."""
        from shoal.tasks.status import told

        return told(self._running)

    def _entry(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        priority: float,
        retries: int,
        once: bool,
        batch: Batch | None,
    ) -> Entry:
        number = next(self._numbers)
        function, arguments = self._function(fn), pack_arguments(args, kwargs)
        name = getattr(fn, "__qualname__", type(fn).__name__)
        ticket = Ticket(number, name, arguments.nbytes, time.monotonic(), priority, retries, once, batch)
        return Entry(ticket, Result(partial(self._running.kill, number)), function, arguments)

    def _function(self, fn: Callable[..., Any]) -> Parcel:
        """The parcel of a function, which is made once."""
        lasting = isinstance(fn, types.FunctionType | types.BuiltinFunctionType)
        if lasting and (known := self._functions.get(fn)):
            return known
        if not callable(fn):
            raise TypeError(f"submit and map want a function first, not {signed(fn)}")
        parcel = by_value(fn) if self._new(fn) else pack(fn)
        if lasting:
            self._functions[fn] = parcel
        return parcel

    def _new(self, fn: Any) -> bool:
        """True if this function is not in the actors' copies of this program: it has no name, or was defined later."""
        name = getattr(fn, "__qualname__", "")
        if "<" in name:
            return isinstance(fn, types.FunctionType)
        return getattr(fn, "__module__", "") == "__main__" and "." not in name and self._there.get(name) is not fn


def _defined() -> dict[str, Any]:
    """The functions and classes that the program's main module has now."""
    main = vars(sys.modules["__main__"]) if "__main__" in sys.modules else {}
    return {name: value for name, value in main.items() if callable(value)}


def _end(running: weakref.ref[Running]) -> None:
    """Wait for all calls when the program ends."""
    if its := running():
        its.close()
        its.join()


def _results(futures: list[Result[T]], ends_at: float | None, batch: Batch, running: Running, ordered: bool) -> Iterator[T]:
    """The results, each of which is forgotten here once it is taken."""
    left = len(futures)
    timeout = None if ends_at is None else ends_at - time.monotonic()
    order = _in_order(futures) if ordered else as_completed(futures, timeout)
    try:
        while left:
            left -= 1
            yield _taken(order, ends_at, batch, running)
    finally:
        for future in futures:
            future.cancel()


def _in_order(futures: list[Result[T]]) -> Iterator[Result[T]]:
    futures.reverse()
    while futures:
        yield futures.pop()


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
