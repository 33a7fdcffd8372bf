"""The backend of joblib that makes calls in a `shoal.Pool`: scikit-learn's `n_jobs` survives a killed worker and shares arrays.

The one idea: joblib hands over batches of calls. A batch is one call of the pool, as long as calls take about PACE seconds
together; what it has not begun after LONG seconds comes back and is handed out anew, so calls that turn out long do not wait
behind each other. An array that a second batch has too is put into shared memory, once for the rest of joblib's call.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from time import perf_counter, thread_time
from typing import Any, TypeAlias

import joblib
import numpy as np
from joblib._memmapping_reducer import reduce_array_memmap_backward
from joblib.parallel import FallbackToBackend, ParallelBackendBase, SequentialBackend, ThreadingBackend, parallel_config

from shoal.actors.workers.call import CALL
from shoal.protocol.errors import UserError, WorkerLost
from shoal.protocol.trusted import opened, pack_arguments, whole
from shoal.runs.threads import asked_for
from shoal.tasks.pool import Pool
from shoal.tasks.pools import Kind, Pools
from shoal.tasks.shared import Shared

PACE = 0.2  # seconds that the calls of a batch take together, about: a hundred times what a batch costs beside its calls
LONG = 0.8  # seconds after which calls of a batch that have not begun come back
CROWDED = 4  # seconds that pass for one of CPU on a machine that others use too, at most; more is taken for waiting
MOST = 4_096  # calls of a batch
IDLE = 60.0  # seconds for which a pool's processes are kept for the next call of joblib

WORDS = ("retries", "idle_worker_timeout", "address", "key", "trusted", "actors")
BOTH = "if you own both ends, say trusted=True here and --trust-code there"

Item: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""The tuple that joblib's `delayed` makes: function, arguments, keyword arguments."""


def work(data: bytes) -> tuple[float, list[Any]]:
    """Make the calls of a batch, in an actor. Returns their pace, in seconds that a call takes on an idle machine, and their
    results: of all calls, or of the first ones if LONG seconds had passed before the others began. data: the parcel of (calls,
    nested backend, its n_jobs)."""
    items, nested, jobs = opened(data)
    results: list[Any] = []
    began, computed, took = perf_counter(), thread_time(), 0.0
    with parallel_config(backend=nested, n_jobs=jobs):
        for function, args, kwargs in items:
            results.append(function(*args, **kwargs))
            if (took := perf_counter() - began) > LONG:
                break
    return max(thread_time() - computed, took / CROWDED) / max(1, len(results)), results


def _unlike(part: Any) -> tuple[Any, ...] | None:
    """Return the reduction of an object that travels in a way of its own; None for most objects."""
    if isinstance(part, np.ndarray):
        return _file_of(part)
    return _lone(part)


def _file_of(array: Any) -> tuple[Any, ...] | None:
    """Return the reduction by which another process maps an array that lies in a file of the user's (`np.memmap`), so that what
    a call writes is in the file; None for any other array."""
    owner: Any = array
    while owner is not None and not isinstance(owner, np.memmap):
        owner = getattr(owner, "base", None)
    if owner is None or owner.mode == "c" or owner.filename is None:
        return None
    found: tuple[Any, ...] = reduce_array_memmap_backward(array)
    return found


def _lone(part: Any) -> tuple[Any, ...] | None:
    """Return the reduction of a node of scikit-learn's tree of callback contexts if there are no callbacks: without its
    children. Else each fit of a search would carry the nodes of all its fits, which nobody reads."""
    inside = getattr(part, "__dict__", {}) if type(part).__name__ == "CallbackContext" else {}
    if inside.get("_callbacks", True) or not inside.get("_children_map"):
        return None
    return object.__new__, (type(part),), {**inside, "_children_map": {}}


class Batch:
    """A batch of joblib's, until its results are there. Used by one thread at a time.

    back: called once with this batch, when all results are there or one call has failed.
    """

    def __init__(
        self, items: Sequence[Item], nested: tuple[Any, int | None], owner: Any, back: Callable[[Batch], object]
    ) -> None:
        self.items, self.nested, self.owner = items, nested, owner
        self.failed: BaseException | None = None
        self.results: list[Any] = [None] * len(items)
        self._left, self._back = len(items), back

    def take(self, first: int, results: Sequence[Any]) -> None:
        """Take in the results of the calls from number `first` on."""
        self.results[first : first + len(results)] = results
        self._left -= len(results)
        if self._left == 0 and self.failed is None:
            self._back(self)

    def fail(self, error: BaseException) -> None:
        if self.failed is None:
            self.failed = error
            self._back(self)


def _named(error: Exception, items: Sequence[Item]) -> Exception:
    """The error of calls that cannot travel, which names the argument that cannot; any other error as it is."""
    if isinstance(error, UserError):
        try:
            for _, args, kwargs in items:
                pack_arguments(args, kwargs)
        except UserError as named:
            return named
    return error


class Inside(ThreadingBackend):  # type: ignore[misc]  # joblib has no types
    """joblib's threads, in a call: at most as many as the call's process computes with. With one, none beside it."""

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        return min(int(super().effective_n_jobs(n_jobs)), asked_for())


class Backend(ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """The backend that `joblib.parallel_config(backend="shoal")` makes. Arguments: of `parallel_config`.

    retries: times that a batch is tried again after its process has ended. idle_worker_timeout: seconds for which the
    processes are kept for the next call of joblib. address: where actors of other machines join, which then make all calls;
    key: name of this program's key pair; trusted: True, because calls of joblib are pickles (docs/tasks.md). actors: processes
    of this machine beside them. Such a pool lives as long as the program. Raises UserError.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    default_n_jobs = -1

    def __init__(
        self,
        pools: Pools,
        *,
        retries: int = 2,
        idle_worker_timeout: float = IDLE,
        address: str = "",
        key: str = "",
        trusted: bool = False,
        actors: int = 0,
        nesting_level: int | None = None,
        **odd: Any,
    ) -> None:
        if odd:
            words = ", ".join(sorted(odd))
            raise UserError(f'parallel_config(backend="shoal"): no argument {words}; there are {", ".join(WORDS)}')
        if address and not trusted:
            raise UserError(f'parallel_config(backend="shoal", address={address!r}): calls of joblib are pickles: {BOTH}')
        if (key or trusted or actors) and not address:
            raise UserError('parallel_config(backend="shoal"): key, trusted and actors are for address="tcp://HOST:PORT"')
        self._door = (address, key, trusted, actors)
        super().__init__(nesting_level=nesting_level)
        self._pools, self._retries, self._idle = pools, retries, idle_worker_timeout
        self._lock = threading.Lock()
        self._users = 0  # calls of joblib, or `with` blocks of joblib.Parallel, that use the pool
        self._pool: Pool | None = None
        self._desk: ThreadPoolExecutor | None = None  # where results are taken in: joblib runs the user's generator there
        self._shared: Shared | None = None
        self._futures: dict[Future[Any], Any] = {}  # those that are under way, and the joblib.Parallel that they are for
        self._size, self._seconds = 1, 0.0

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None or CALL.get(None) is not None:  # a call of a pool has its own share of the cores already
            return 1
        return n_jobs if n_jobs > 0 else max(joblib.cpu_count() + 1 + n_jobs, 1)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **how: Any) -> int:
        """Make the pool, or take one that is there. Returns the number of its processes."""
        many = self.effective_n_jobs(n_jobs)
        if many == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        with self._lock:
            if self._users == 0:
                self._pool = self._pools.take(self._kind(many), self._idle)
                self._desk = ThreadPoolExecutor(1, "shoal-joblib")
            self._users += 1
            most = how.get("max_nbytes")
            writable = most if most is not None and how.get("mmap_mode") == "r" else None
            self._shared = Shared(other=_lone, most=0) if self._door[0] else Shared(writable, _unlike)
        self._size, self._seconds = 1, 0.0
        return many

    def _kind(self, many: int) -> Kind:
        address, key, trusted, actors = self._door
        return Kind(actors if address else many, self._threads(many), address, key, trusted)

    def _threads(self, many: int) -> int:
        """Threads of each process, as joblib says: inner_max_num_threads, else OMP_NUM_THREADS, else its share of the cores."""
        if self.inner_max_num_threads is not None:
            return int(self.inner_max_num_threads)
        return asked_for() if "OMP_NUM_THREADS" in os.environ else max(joblib.cpu_count() // many, 1)

    def get_nested_backend(self) -> tuple[Any, int | None]:
        """The backend of a call of joblib in a call."""
        return Inside(nesting_level=(self.nesting_level or 0) + 1), None

    def start_call(self) -> None:
        """Forget arrays of the last call of joblib: they may have been written to since."""
        if self._shared:
            self._shared.clear()

    def stop_call(self) -> None:
        self.start_call()

    def submit(self, func: Any, callback: Callable[[Batch], object]) -> Batch:
        """Hand out a batch of joblib's (a BatchedCalls). Returns what `callback` is called with when it is done."""
        batch = Batch(func.items, self.get_nested_backend(), getattr(callback, "parallel", None), callback)
        self._hand_out(batch, 0, len(batch.items))
        return batch

    def _hand_out(self, batch: Batch, first: int, end: int) -> None:
        desk, pool, shared = self._desk, self._pool, self._shared
        assert desk is not None
        assert pool is not None
        assert shared is not None
        try:
            parcel, held = shared.parcel((batch.items[first:end], *batch.nested))
            data = whole(parcel.data) if self._door[0] else parcel.data  # another machine has not this one's memory
            future = pool.submit(work, data, retries=self._retries)
        except Exception as error:  # noqa: BLE001  joblib loses what is raised here, and would wait for ever
            desk.submit(batch.fail, _named(error, batch.items[first:end]))
            return
        self._futures[future] = batch.owner

        def done(future: Future[Any]) -> None:  # it holds the parcel and the arrays that the batch reads
            del parcel_and_puts[:]
            with suppress(RuntimeError):  # joblib has given up this call, and all of it is over
                desk.submit(self._take_in, batch, first, end, future)

        parcel_and_puts = [parcel, held]
        future.add_done_callback(done)

    def _take_in(self, batch: Batch, first: int, end: int, future: Future[Any]) -> None:
        self._futures.pop(future, None)
        try:
            each, results = future.result()
        except WorkerLost as lost:
            name, many = getattr(batch.items[first][0], "__qualname__", "a call"), end - first
            batch.fail(WorkerLost(f"a batch of joblib's with {many} calls of {name}: {lost}"))
            return
        except BaseException as error:  # noqa: BLE001  a call's own error, whatever it is, goes to joblib
            batch.fail(error)
            return
        self._seconds = max(each, 0.5 * (each + (self._seconds or each)))
        middle = first + len(results)
        step = max(1, self._fitting())
        for at in range(middle, end, step):
            self._hand_out(batch, at, min(at + step, end))
        batch.take(first, results)

    def _fitting(self) -> int:
        return int(min(PACE / max(self._seconds, 1e-6), MOST))

    def compute_batch_size(self) -> int:
        if self._seconds:
            self._size = max(1, min(self._fitting(), 4 * self._size))
        return self._size

    def retrieve_result_callback(self, out: Batch) -> list[Any]:
        if out.failed is not None:
            raise out.failed
        return out.results

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End the processes that are at calls of this call of joblib. ensure_ready: False: the pool too, if nobody else uses
        it."""
        theirs = [future for future, owner in list(self._futures.items()) if getattr(owner, "_aborting", True)]
        for future in [one for one in theirs if not one.cancel()]:
            future.kill()  # type: ignore[attr-defined]  # all are the pool's
        if not ensure_ready and self._pool is not None:
            self._pools.drop(self._pool)

    def terminate(self) -> None:
        """A call of joblib is over: give the pool back."""
        with self._lock:
            self._users = max(0, self._users - 1)
            if self._users or self._pool is None or self._desk is None:
                return
            self._pools.give_back(self._pool)
            self._desk.shutdown(wait=False)
            self._pool = self._desk = self._shared = None
