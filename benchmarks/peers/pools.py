"""Calls in a pool of two processes: concurrent.futures, loky, joblib, Dask and Ray, each alone in a process without Shoal.

Prints a JSON line: the figure that was asked for, and the versions. Words: ENGINE QUESTION NUMBER CHUNK.

The one idea: a question is a function of `submit`, `map` and `share`, so every engine, Shoal too, is asked the same. CPU is
that of the process and all its children, from their clocks and /proc.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

PROCESSES = 2
WARM = 100  # calls before a measurement
ARRAY = 12_500_000  # float64: 100 MB
EVERY = 0.5  # seconds from one killed process to the next
SHORT = 0.05  # seconds of a call whose process may be killed
TICK = 1 / os.sysconf("SC_CLK_TCK")


def noop(number: int = 0) -> int:
    return number


def entry(array: Any, at: int) -> float:
    return float(array[at])


def told(log: str, number: int) -> int:
    """A call that writes down who began it, so that its process can be killed."""
    with open(log, "ab", buffering=0) as file:
        file.write(b"%d %d\n" % (number, os.getpid()))
    threading.Event().wait(SHORT)
    return number * number


def tree() -> list[int]:
    """The process ids of this process and of all below it. It is cheap, because it is part of what is measured."""
    found = [os.getpid()]
    for pid in found:
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/children") as file:
                    found += map(int, file.read().split())
    return found


def cpu() -> float:
    """Seconds that these processes have computed, ended children included."""
    total = 0.0
    for pid in tree():
        with suppress(OSError):
            total += time.clock_gettime((~pid << 3) | 2) + TICK * sum(map(int, _stat(pid)[13:15]))  # the clock of a process
    return total


def memory() -> int:
    """Bytes in memory of these processes, with their parts of the files that they share, and all shared memory of the system:
    pages that the system wrote are in no process's part until the process looks at them."""
    total = _kilobytes(Path("/proc/meminfo"), ("Shmem:",))
    for pid in tree():
        with suppress(OSError):
            total += _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), ("Pss_Anon:", "Pss_File:"))
    return 1024 * total


def _kilobytes(path: Path, names: Sequence[str]) -> int:
    """The sum of these figures of a file of the system."""
    rows = [line.split() for line in path.read_text().splitlines()]
    return sum(int(row[1]) for row in rows if row and row[0] in names)


def _stat(pid: int) -> list[str]:
    """The fields of a process's stat, from its state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


class Asked:
    """submit: (function, *arguments) to a function that waits for the result. map: (function, items) to results. share: an
    array to what stands for it as an argument. together: calls, as submit's arguments, to the results of all."""

    def __init__(
        self,
        submit: Callable[..., Callable[[], Any]],
        map_: Callable[[Callable[..., Any], Iterable[Any]], Iterable[Any]],
        share: Callable[[Any], Any] = lambda array: array,
        together: Callable[[Sequence[Any]], Iterable[Any]] | None = None,
    ) -> None:
        self.submit, self.map, self.share = submit, map_, share
        self.together = together or self._all

    def _all(self, calls: Sequence[Any]) -> Iterator[Any]:
        waits = [self.submit(*call) for call in calls]
        return (wait() for wait in waits)


@contextmanager
def ppe(chunk: int) -> Iterator[Asked]:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(PROCESSES) as pool:
        yield Asked(lambda *call: pool.submit(*call).result, lambda fn, items: pool.map(fn, items, chunksize=chunk))


@contextmanager
def loky(chunk: int) -> Iterator[Asked]:
    from loky import get_reusable_executor

    pool = get_reusable_executor(PROCESSES)
    yield Asked(lambda *call: pool.submit(*call).result, lambda fn, items: pool.map(fn, items, chunksize=chunk))
    pool.shutdown(kill_workers=True)


@contextmanager
def joblib(chunk: int) -> Iterator[Asked]:
    from joblib import Parallel, delayed

    with Parallel(PROCESSES) as parallel:

        def submit(*call: Any) -> Callable[[], Any]:
            return lambda: parallel([delayed(call[0])(*call[1:])])[0]

        def together(calls: Sequence[Any]) -> Any:
            return parallel(delayed(call[0])(*call[1:]) for call in calls)

        yield Asked(submit, lambda fn, items: together([(fn, item) for item in items]), together=together)


@contextmanager
def dask(chunk: int) -> Iterator[Asked]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=PROCESSES, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):

        def each(fn: Callable[..., Any], items: Iterable[Any]) -> Any:
            return client.gather(client.map(fn, list(items), pure=False))

        yield Asked(
            lambda *call: client.submit(*call, pure=False).result, each, lambda array: client.scatter(array, broadcast=True)
        )


@contextmanager
def ray(chunk: int) -> Iterator[Asked]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import logging

    import ray as rays

    rays.init(
        num_cpus=PROCESSES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    remotes: dict[Any, Any] = {}

    def remote(fn: Callable[..., Any]) -> Any:
        return remotes.get(fn) or remotes.setdefault(fn, rays.remote(fn))

    def submit(*call: Any) -> Callable[[], Any]:
        asked = remote(call[0]).remote(*call[1:])
        return lambda: rays.get(asked)

    yield Asked(submit, lambda fn, items: rays.get([remote(fn).remote(item) for item in items]), rays.put)
    rays.shutdown()


ENGINES = {"ppe": ppe, "loky": loky, "joblib": joblib, "dask": dask, "ray": ray}


def single(engine: Asked, number: int) -> float:
    """Microseconds of CPU of a call that does nothing, one at a time."""
    for _ in range(WARM):
        engine.submit(noop)()
    before = cpu()
    for _ in range(number):
        engine.submit(noop)()
    return 1e6 * (cpu() - before) / number


def many(engine: Asked, number: int) -> float:
    """Microseconds of CPU of a call of a map of calls that do nothing."""
    assert list(engine.map(noop, range(WARM))) == list(range(WARM))
    before = cpu()
    assert sum(engine.map(noop, range(number))) == number * (number - 1) // 2
    return 1e6 * (cpu() - before) / number


def first(engine: Asked, number: int) -> float:
    """Seconds of CPU from the start of the program to its first result."""
    assert engine.submit(noop, 1)() == 1
    return cpu()


def array(engine: Asked, number: int) -> float:
    """Milliseconds of CPU of `number` calls that look at an array of 100 MB."""
    return _with_array(engine, number)[0]


def array_memory(engine: Asked, number: int) -> float:
    """Copies of the array that these calls added to memory; at least 0.001."""
    return _with_array(engine, number)[1]


def _with_array(engine: Asked, number: int) -> tuple[float, float]:
    import numpy as np

    whole = np.arange(ARRAY, dtype=np.float64)
    for _ in range(WARM // 10):
        engine.submit(noop)()
    before, was = memory(), cpu()
    shared = engine.share(whole)
    assert list(engine.together([(entry, shared, at) for at in range(number)])) == list(map(float, range(number)))
    took = cpu() - was
    return 1e3 * took, max(0.001, (memory() - before) / whole.nbytes)


def kill(engine: Asked, number: int) -> float:
    """The results of calls while the process that began last is killed every EVERY seconds. Raises SystemExit if one is
    missing."""
    results: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        log, over, killed = Path(folder) / "log", threading.Event(), list[int]()
        log.touch()

        def killer() -> None:
            while not over.wait(EVERY):
                lines = log.read_bytes().split(b"\n")[:-1]
                if lines and (pid := int(lines[-1].split()[1])) not in killed:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        killed.append(pid)

        thread = threading.Thread(target=killer, daemon=True)
        thread.start()
        why = ""
        try:
            results.update(enumerate(engine.together([(told, str(log), at) for at in range(number)])))
        except Exception as error:  # noqa: BLE001  each engine has errors of its own
            why = f" ({type(error).__name__})"
        over.set()
        thread.join()
        begun = log.read_bytes().count(b"\n")
    right = sum(results.get(at) == at * at for at in range(number))
    print(f"{len(killed)} killed, {begun} begun, {right} right", file=sys.stderr)
    if right < number or begun < number or begun > number + len(killed):
        os.write(2, f"{right} of {number} results, {begun} calls begun, {len(killed)} processes killed{why}\n".encode())
        os._exit(1)  # a broken pool may not end by itself
    return float(right)


QUESTIONS = {"single": single, "map": many, "start": first, "array": array, "memory": array_memory, "kill": kill}


def answer(engine: Asked, question: str, number: int) -> float:
    return QUESTIONS[question](engine, number)


def main(name: str, question: str, number: str = "0", chunk: str = "1") -> None:
    with ENGINES[name](int(chunk)) as engine:
        figure = answer(engine, question, int(number))
        library = {"dask": "distributed"}.get(name, name)
        versions = {} if name == "ppe" else {library: metadata.version(library)}
        print(json.dumps({"figure": figure, "versions": versions}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
