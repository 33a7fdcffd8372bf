"""`shoal.Pool`: an executor of `concurrent.futures` whose workers are actors.

The one idea: a call is a task like any other, so what holds for the tasks of a run holds for calls: a worker that dies is
replaced, only the call that it was at is blamed, and each result is counted once.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import threading
import time
import types
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from shoal.actors.workers.call import own_cores
from shoal.actors.workers.filed import Filed
from shoal.actors.workers.many import Many
from shoal.coordinator.deciding.plans.tickets import Batch, Ticket
from shoal.coordinator.deciding.resources import ONE_CORE, Need
from shoal.protocol.alike import Alike
from shoal.protocol.errors import GangError, NeedError, UserError, own, signed
from shoal.protocol.shared import SHORT
from shoal.protocol.trusted import Parcel, by_value, opened, pack, pack_arguments, whole
from shoal.runs.threads import cores
from shoal.tasks.entries import Entry
from shoal.tasks.futures import Result
from shoal.tasks.how import Exceptions, How, costs, counted, how, until
from shoal.tasks.inputs import Countdown, Put, Seen, apart, awaited, flat, here, settled
from shoal.tasks.machine import gpus
from shoal.tasks.maps import Results, buffered, each_of, room_of, window
from shoal.tasks.meter import Meter, terminal
from shoal.tasks.running import Running, started
from shoal.tasks.spread import FEW, Part, Spread

if TYPE_CHECKING:
    from shoal.protocol.door import ServerKeys
    from shoal.tasks.joining import Door
    from shoal.tasks.kept import Kept

T = TypeVar("T")
L = TypeVar("L")
ROOM = 1 << 28  # bytes of results of a map that nobody has taken, from which on no more of its calls are given out
PLAIN, DISK = "auto", "disk"


class Pool(Executor):
    """Calls functions in `actors` processes, which are forked from this program when the pool is made.

    actors: number of processes; "auto": one for each core that this program, or the call in which the pool is made, may use.
    retries: times that a call may be tried again after the process that was at it has ended. threads: threads that numpy, torch
    and the like compute with in each process; None: what OMP_NUM_THREADS says, else 1. seed: of `shoal.seed()` in a call.
    run_dir: a folder in which results are kept: a program that was killed and is started again makes only the calls that have
    no result there. Raises UserError if another process uses it. address: where actors of other machines join
    ("tcp://0.0.0.0:5555"; port 0: any), so that actors may be 0; keys: name of the pool's own key pair (`shoal keys new NAME`),
    by which both ends are known. Calls for such actors are functions of modules and plain values. trusted: they are pickles,
    for actors that were started with --trust-code, whose results are unpickled here. progress: if standard error is a terminal,
    calls that last more than 2 s are told of on one line, which is wiped in the end; in a call nothing is.

    Make the pool when the functions that it is to call are defined: what is defined later, and lambdas, need cloudpickle
    (shoal[tasks]).

    Arguments and results are copied as `concurrent.futures.ProcessPoolExecutor` copies them; arrays of 64 KiB and more through
    shared memory. An exception of a call is raised by `result()`, with the traceback in the other process as its cause.
    """

    _given: object = None  # an object that calls find in their process, where it has not travelled: GIVEN of workers/call.py
    _ahead: int = 1  # long calls that an actor holds

    def __init__(
        self,
        actors: int | str = PLAIN,
        *,
        retries: int = 2,
        threads: int | None = None,
        seed: int = 0,
        run_dir: str | Path = "",
        address: str = "",
        keys: str | ServerKeys | None = None,
        trusted: bool = False,
        progress: bool = True,
    ) -> None:
        many, least = (own_cores() or cores()) if actors == PLAIN else own(actors), 0 if address else 1
        if not isinstance(address, str):
            raise UserError(f"address={address!r}: must be text, 'tcp://HOST:PORT'")
        if isinstance(many, bool) or not isinstance(many, int) or many < least:
            raise UserError(
                f'actors={actors!r}: must be a whole number from {least}, or "auto" for one actor a core'
                + "; with an address, where others join, it may be 0" * bool(many == 0)
            )
        retries, seed = counted("retries", retries, 0), own(seed)
        if threads is not None:
            threads = counted("threads", threads, 1)
        if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
            raise UserError(f"seed={seed!r}: must be a whole number of 64 bits")
        if not isinstance(progress, bool):
            raise UserError(f"progress={progress!r}: must be True or False")
        self._how = How(retries=retries)
        self._there = _defined()
        door = _door(many, address, keys, trusted)
        self._far, self._trusted = door is not None, trusted
        folder, screen = Path(run_dir) if run_dir else None, terminal() if progress and not own_cores() else None
        meter = Meter(screen) if screen else None
        self._running = started(many, seed, threads, folder, self._given, self._ahead, door, meter)
        self._numbers, self._seen, self._alike = itertools.count(), Seen(), Alike()
        self._counted = False  # True: the machine's GPUs are
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
        need: Need = ONE_CORE,
        key: str | Callable[..., Any] = "",
        timeout: float | None = None,
        retry_on: Exceptions = (),
        cost: float | None = None,
        **kwargs: Any,
    ) -> Result[T]:
        """Call `fn(*args, **kwargs)` in another process. Returns the future of its result.

        A future among the arguments, or in a list that is an argument, stands for its result: the call begins when all of them
        are done. If one of them fails, so does this call, at once and with the same exception.

        priority: calls of higher priority begin first; a minute of waiting counts as one. retries: as in Pool, for this call.
        once: the call is never begun twice: if its process ends, the future raises WorkerLost at once. need: what the call
        takes of the machine while it runs. key: part of the call's name in the pool's folder; a
        function is an argument of `fn`'s own, as max and sorted have it. timeout: seconds that the call
        may take from when it begins: after them its process is ended, and the future raises TimeoutError. retry_on: exceptions
        after which the call is made again, `retries` times at most. cost: seconds that you expect the call to take, in place of
        what the pool learns: of calls that wait, longer ones begin first. Raises UserError if an argument cannot travel or be
        kept, NeedError if the machine has less than the call needs, RuntimeError after `shutdown`.
        """
        if not isinstance(key, str) and callable(key):  # of max, min or sorted
            kwargs, key = {**kwargs, "key": key}, ""
        its = self._asked(priority, retries, once, need, key, timeout, retry_on, cost)
        if futures := awaited(args, kwargs):
            return self._later(fn, args, kwargs, its, futures)
        entry = self._entry(fn, args, kwargs, its, None)
        if not entry.future.done():
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
        need: Need = ONE_CORE,
        key: str = "",
        retry_on: Exceptions = (),
        cost: float | Callable[..., float] | None = None,
        buffersize: int | None = None,
        keep: int | str | None = None,
    ) -> Results[T]:
        """Call `fn` for each item, as the built-in map does, and return an iterator of the results.

        Calls that are short travel several at a time by themselves: `chunksize` is for programs written for other pools, and is
        not looked at. ordered: False gives each result as soon as it is there. While results of `keep` bytes (256 MB; or text,
        "2G") wait to be taken, further calls of this map wait; keep="disk": large results wait in files, and do not count.
        timeout: seconds from now, after which the iterator raises TimeoutError. buffersize: calls that are made ahead of the
        result that is taken, at most: items are then taken from the iterables as results are; None: all calls are made now.
        cost: seconds, or a function from an item to seconds. The rest: as in submit.
        """
        if chunksize != PLAIN and not (isinstance(chunksize, int) and chunksize >= 1):
            raise ValueError(f'chunksize={chunksize!r}: must be a whole number from 1, or "auto"')
        buffersize = own(buffersize)
        if buffersize is not None and (isinstance(buffersize, bool) or not isinstance(buffersize, int)):
            raise TypeError(f"buffersize={buffersize!r}: must be a whole number from 1, or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError(f"buffersize={buffersize!r}: must be a whole number from 1, or None")
        ends_at = until(timeout)
        batch, fixed = Batch(ROOM if keep in (None, DISK) else room_of(keep)), None if callable(cost) else cost
        if keep == DISK:
            fn = cast(Callable[..., T], Filed(fn, self._disk()))
        its = self._asked(priority, retries, once, need, key, None, retry_on, fixed)
        if its is self._how and cost is None and buffersize is None and keep != DISK and self._together:
            iterables = columns = _columns(iterables)
            if columns and len(columns[0]) > FEW:
                return self._spread(fn, columns, batch, ends_at, ordered)
        each = (
            (args, its._replace(cost=costs(cost, args)) if callable(cost) else its) for args in zip(*iterables, strict=False)
        )
        if buffersize is not None:
            return self._buffered(fn, each, buffersize, ends_at, batch, ordered)
        entries = [self._entry(fn, args, {}, one, batch) for args, one in each]
        self._running.offer(entry for entry in entries if not entry.future.done())
        futures = [entry.future for entry in entries]
        return Results(each_of(list(futures), ends_at, batch, self._running, ordered), futures, batch, weakref.ref(self))

    @property
    def _together(self) -> bool:
        """True if short calls of a map may be one call of the pool: each is then known by its number alone."""
        return self._running.near is not None and self._running.kept is None and self._ahead == 1

    def _spread(
        self,
        fn: Callable[..., T],
        columns: tuple[Sequence[Any], ...],
        batch: Batch,
        ends_at: float | None,
        ordered: bool,
    ) -> Results[T]:
        """The results of a map of many calls, whose numbers follow each other."""
        # one call into C, so that no other thread draws a number in between
        many = len(columns[0])
        [last] = deque(itertools.islice(self._numbers, many), maxlen=1)
        first, name, function, its = last - many + 1, _name(fn), self._function(fn), self._how
        me, running, seen, alike = weakref.ref(self), self._running, self._seen, self._alike

        def make(part: Part) -> Entry:
            number = first + part.start
            seen.taken()  # of a call that could not travel
            if part.alone:
                arguments = pack_arguments(tuple(column[part.start] for column in columns), {}, alike)
            else:
                given = tuple(column[part.start : part.end] for column in columns)
                arguments = pack((Many(given, number), None), alike=alike)
            wishes = its if part.alone else its._replace(retries=0)
            what = name if part.alone else f"{name}, several at once"
            ticket = _ticket(number, what, arguments.nbytes, time.monotonic(), wishes, batch, part.end - part.start)
            return Entry(ticket, Result(running, number, me), function, arguments, seen.taken(), b"", wishes, piece=part)

        def pace() -> float | None:
            return running.each.get(name) or running.plan.pace.get(name)

        def learned(seconds: float) -> None:
            running.each[name] = seconds

        spread = Spread[T](many, make, pace, learned, running, batch, running.actors)
        spread.begin()
        return Results(spread.results(ends_at, ordered), None, batch, me, spread.whole)

    def _buffered(
        self,
        fn: Callable[..., T],
        each: Iterator[tuple[tuple[Any, ...], How]],
        buffersize: int,
        ends_at: float | None,
        batch: Batch,
        ordered: bool,
    ) -> Results[T]:
        """The results of a map whose calls are made as results are taken."""
        me, running = weakref.ref(self), self._running

        def more() -> Result[T] | None:
            pool = me()
            if pool is None or (given := next(each, None)) is None:
                return None
            entry = pool._entry(fn, given[0], {}, given[1], batch)
            if not entry.future.done():
                running.offer([entry])
            return entry.future

        left = deque(future for future in (more() for _ in range(buffersize)) if future is not None)
        order = window(left, more, ends_at, ordered)
        return Results(buffered(left, order, ends_at, batch, running), None, batch, me)

    def gather(self, futures: Iterable[Future[T]]) -> Result[list[T]]:
        """The future of the list of these futures' results. It raises what the first of them raises that fails, at once."""
        each = list(futures)
        if strange := [one for one in each if not isinstance(one, Future)]:
            raise UserError(f"gather: expected futures, and one is {signed(strange[0])}")
        its: Result[list[T]] = self._future(-1)

        def ready() -> None:
            if its.set_running_or_notify_cancel():
                try:
                    its.set_result(list(settled(tuple(each), {}, each)[0]))
                except BaseException as failed:  # noqa: BLE001  whatever a future raises, this one raises
                    its.set_exception(failed)

        if each:
            Countdown(each, ready)
        else:
            ready()
        return its

    def join_line(self) -> str:
        """The command that starts an actor on another machine, which joins this pool. Raises UserError if the pool has no
        address."""
        if self._running.door is None:
            raise UserError("join_line: this pool has no address; make it with address='tcp://HOST:PORT', keys='NAME'")
        return self._running.door.line(self._running.address)

    def put(self, value: T, *, copy: bool = False) -> Put[T]:
        """Put a value into shared memory, once for all calls that have it as an argument. They get the value itself: its arrays
        of 64 KiB and more are read in place, and cannot be written; with `copy` each call may write them, and what it writes is
        seen by no other call. The result's `value` is the value here."""
        return Put(value, self._seen, copy)

    def reduce(self, fn: Callable[[T, T], T], items: Iterable[T | Future[T]], **how: Any) -> Future[T]:
        """Join items, or the results of futures, two at a time with `fn`, until one is left. Returns its future.

        The tree depends on the number of items alone, and neighbours are joined with neighbours: so a sum of floats has the
        same bits for any number of actors. how: as for `submit`. Raises UserError if there is no item.
        """
        level: list[Any] = list(items)
        if not level:
            raise UserError("reduce: expected at least one item, and there is none")
        while len(level) > 1:
            pairs = [level[at : at + 2] for at in range(0, len(level), 2)]
            level = [self.submit(fn, *pair, **how) if len(pair) == 2 else pair[0] for pair in pairs]
        [last] = level
        if isinstance(last, Future):
            return last
        single: Future[T] = Future()
        single.set_result(last)
        return single

    async def run(self, fn: Callable[..., T], /, *args: Any, **how: Any) -> T:
        """The result of a call, for `await`; else as `submit`. If the await is cancelled, or its time is up, the call is
        killed: its process is ended and replaced."""
        import asyncio  # a fifth of the time that a program takes to its first result, if it does not await

        future = self.submit(fn, *args, **how)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.kill()
            raise

    async def completed(self, futures: Mapping[Future[T], L]) -> AsyncIterator[tuple[L, T]]:
        """The label and result of each future, as soon as it is there. futures: future -> label. Raises what a future
        raises."""
        import asyncio

        loop, done = asyncio.get_running_loop(), asyncio.Queue[Future[T]]()
        for future in list(futures):
            future.add_done_callback(lambda one: loop.call_soon_threadsafe(done.put_nowait, one))
        for _ in range(len(futures)):
            future = await done.get()
            yield futures[future], future.result()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        import asyncio

        self._running.close()
        await asyncio.to_thread(self._running.join)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. wait: return when all calls are done and no process is left. cancel_futures: calls that have not
        begun are cancelled."""
        self._running.close(cancel_futures)
        if wait and threading.current_thread() is not self._running:
            self._running.join()

    @property
    def actors(self) -> int:
        """Number of processes."""
        return self._running.actors

    @property
    def alive(self) -> bool:
        """True if the pool takes calls: it has processes, and is not shut down."""
        return self._running.open

    def resize(self, actors: int) -> None:
        """Have so many actors of this machine from now on. New ones are forked from the process that made the first; those that
        are too many leave as soon as they have no call, and calls wait until they have left. Of actors that joined from
        elsewhere none leaves. Raises UserError for a number below 1, or below 0 in a pool with an address, and for a pool that
        was made with none."""
        actors, least = own(actors), 0 if self._far else 1
        if isinstance(actors, bool) or not isinstance(actors, int) or actors < least:
            raise UserError(f"resize({actors!r}): must be a whole number from {least}")
        if actors and not self._running.grows:
            raise UserError(
                f"resize({actors}): this pool was made with actors=0, and forks none; make it with actors=1, "
                "or start `shoal actor` on this machine too"
            )
        self._running.ask(partial(self._running.resize, actors))

    def status(self) -> str:
        """Return the state of the pool in words: a line for each actor, and why calls wait."""
        try:
            from shoal.tasks.status import told
        except OSError as why:
            raise UserError(SHORT) from why

        return told(self._running)

    def _entry(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        how: How,
        batch: Batch | None,
    ) -> Entry:
        plain, puts = self._elsewhere(_named(fn) if self._far and not self._trusted else "", args, kwargs)
        number, function = next(self._numbers), self._function(fn)
        future = self._future(number)
        if known := _known(self._running.kept, self._seen, fn, function, args, kwargs, how.key):
            key, result = known
            if result is not None:
                future.set_result(opened(result))
                return Entry(Ticket(number, _name(fn)), future, function, function)
        else:
            key = b""
        self._seen.taken()  # of a call that could not travel
        arguments = pack_arguments(args, kwargs, self._alike)
        ticket = _ticket(number, _name(fn), arguments.nbytes, time.monotonic(), how, batch, puts=_names(puts))
        return Entry(ticket, future, function, arguments, self._seen.taken(), key, how, plain, puts)

    def _elsewhere(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[bytes, tuple[Put[Any], ...]]:
        """Return a call as actors elsewhere are sent it, b"" if as actors here are, and the values that were put and go beside
        it. name: of its function; "": functions are pickled, if there are actors elsewhere."""
        if name:
            from shoal.protocol.plaincalls import pack_call

            its = apart(args, kwargs)
            return pack_call(name, its.args, its.kwargs, its.places), its.puts
        if self._far and any(isinstance(one, Put) for one in flat(args, kwargs)):
            parcel = pack_arguments(*here(args, kwargs))  # held until its memory is copied
            return whole(parcel.data), ()
        return b"", ()

    def _asked(
        self,
        priority: float,
        retries: int | None,
        once: bool,
        need: Need,
        key: str,
        timeout: float | None,
        retry_on: Exceptions,
        cost: float | None,
    ) -> How:
        plain = need is ONE_CORE and timeout is None and cost is None and retries is None
        if plain and not (priority or once or key or retry_on):
            return self._how
        its = how(priority, self._how.retries if retries is None else retries, once, need, key, timeout, retry_on, cost)
        again = (*its.retry_on, GangError) if its.need.gang and not its.once else its.retry_on
        return its._replace(need=self._met(its.need), retry_on=again)

    def _met(self, need: Need) -> Need:
        """A need that the machine can meet. Raises NeedError."""
        if need == ONE_CORE:
            return ONE_CORE
        if need.gpus and not self._counted:
            self._counted = True
            self._running.machine.add(gpus())
        machines = self._running.machines()
        if machines and all(one.never(need) for one in machines):
            raise NeedError(machines[0].never(need))
        return need

    def _disk(self) -> str:
        """The folder in which results of a map lie that are to wait on disk. Raises UserError."""
        if self._far:
            raise UserError(f"keep={DISK!r}: for pools of this machine alone: a file of another machine cannot be read here")
        return str(self._running.folder or tempfile.gettempdir())

    def _future(self, number: int) -> Result[Any]:
        return Result(self._running, number, weakref.ref(self))

    def _later(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], how: How, futures: list[Future[Any]]
    ) -> Result[Any]:
        """The future of a call that is made when all of these futures are done."""
        number, function, since = next(self._numbers), self._function(fn), time.monotonic()
        future, running, seen, name = self._future(number), self._running, self._seen, _name(fn)
        alike, elsewhere = self._alike, self._elsewhere
        kept, named = running.kept, _named(fn) if self._far and not self._trusted else ""
        running.expect()
        passes = kept is None and running.door is None  # else the call is known by its values, or made where they are not

        def itself(one: Future[Any]) -> Any:
            return one.passed(seen) if passes and isinstance(one, Result) else one.result()

        def ready() -> None:
            entry = None
            try:
                given = settled(args, kwargs, futures, itself)
                known = _known(kept, seen, fn, function, *given, how.key)
                if known and known[1] is not None and future.set_running_or_notify_cancel():
                    future.set_result(opened(known[1]))
                    return
                plain, puts = elsewhere(named, *given)
                arguments = pack_arguments(*given, alike)
                ticket = _ticket(number, name, arguments.nbytes, since, how, None, puts=_names(puts))
                key = known[0] if known else b""
                entry = Entry(ticket, future, function, arguments, seen.taken(), key, how, plain, puts)
            except BaseException as failed:  # noqa: BLE001  whatever a future raises, its dependants raise
                if future.set_running_or_notify_cancel():
                    future.set_exception(failed)
            finally:
                running.follow(entry)

        Countdown(futures, ready)
        return future

    def _function(self, fn: Callable[..., Any]) -> Parcel:
        """The parcel of a function, which is made once."""
        its = fn.fn if type(fn) is Filed else fn
        lasting = isinstance(fn, types.FunctionType | types.BuiltinFunctionType)
        if lasting and (known := self._functions.get(fn)):
            return known
        if not callable(its):
            raise TypeError(f"submit and map want a function first, not {signed(its)}")
        parcel = by_value(fn) if self._trusted or self._new(its) else pack(fn)
        if lasting:
            self._functions[fn] = parcel
        return parcel

    def _new(self, fn: Any) -> bool:
        """True if this function is not in the actors' copies of this program: it has no name, or was defined later."""
        name = getattr(fn, "__qualname__", "")
        if "<" in name:
            return isinstance(fn, types.FunctionType)
        return getattr(fn, "__module__", "") == "__main__" and "." not in name and self._there.get(name) is not fn


def _known(
    kept: Kept | None,
    seen: Seen,
    fn: Callable[..., Any],
    function: Parcel,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    own: str,
) -> tuple[bytes, bytes | None] | None:
    """The key of a call in the pool's folder, and its result from an earlier life; None if the pool has no folder."""
    if kept is None:
        return None
    key = kept.keys.key(fn, function.data, seen.plain(args, kwargs), own)
    return key, kept.found(key)


def _door(many: int, address: str, keys: str | ServerKeys | None, trusted: bool) -> Door | None:
    """Return the door at which actors of other machines join; None: nowhere, and nothing that they would need is imported."""
    if not (address or keys or trusted):
        return None
    from shoal.tasks.joining import door_of

    return door_of(many, address, keys, trusted)


def _named(fn: Callable[..., Any]) -> str:
    from shoal.protocol.names import name_of

    return name_of(fn)


def _names(puts: tuple[Put[Any], ...]) -> tuple[str, ...]:
    return tuple(put.name for put in puts)


def _ticket(
    number: int, name: str, nbytes: int, since: float, its: How, batch: Batch | None, calls: int = 1, puts: tuple[str, ...] = ()
) -> Ticket:
    return Ticket(
        number,
        name,
        nbytes,
        since,
        its.priority,
        its.retries,
        its.once,
        batch,
        its.need,
        cost=its.cost,
        timed=its.timeout > 0,
        calls=calls,
        puts=puts,
    )


def _columns(iterables: tuple[Iterable[Any], ...]) -> tuple[Sequence[Any], ...]:
    """The items of iterables, of each as many as the shortest has, which nobody changes any more."""
    if len(iterables) == 1:
        [one] = iterables
        return (one if type(one) in (range, tuple, bytes) else list(one),)  # type: ignore[return-value]
    rows = list(zip(*iterables, strict=False))
    return tuple([row[at] for row in rows] for at in range(len(iterables)))


def _name(fn: Callable[..., Any]) -> str:
    return getattr(fn, "__qualname__", type(fn).__name__)


def _defined() -> dict[str, Any]:
    """The functions and classes that the program's main module has now."""
    main = vars(sys.modules["__main__"]) if "__main__" in sys.modules else {}
    return {name: value for name, value in main.items() if callable(value)}


def _end(running: weakref.ref[Running]) -> None:
    """Wait for all calls when the program ends."""
    if its := running():
        its.close()
        its.join()
