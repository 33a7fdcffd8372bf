"""Large results of a pool: where they lie, who opens them, and what is left of them."""

from __future__ import annotations

import gc
import operator
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from test_pool import begun, double

from shoal.protocol.errors import UserError
from shoal.protocol.trusted import held, opened, pack, whole
from shoal.tasks.pool import Pool

LARGE = 100_000  # numbers of an array that lies beside its pickle


class Traced:
    """An object with a large array, which leaves a line where it is opened."""

    def __init__(self, path: str, array: Any) -> None:
        self.path, self.array = path, array

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return traced, (self.path, self.array)


def traced(path: str, array: Any) -> Traced:
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    return Traced(path, array)


def make(path: str, number: float) -> Traced:
    with open(f"{path}-made", "a") as file:
        file.write(f"{os.getpid()}\n")
    return Traced(path, np.full(LARGE, number))


def total(*made: Traced) -> float:
    return float(sum(one.array.sum() for one in made))


def added(one: Any, other: Any) -> Any:
    return one + other


class OddError(Exception):
    pass


class Spoilt:
    """A result that cannot be opened."""

    def __init__(self) -> None:
        self.array = np.zeros(LARGE)

    def __setstate__(self, state: Any) -> None:
        raise OddError("spoilt")


def spoilt() -> Spoilt:
    return Spoilt()


def ones(x: int) -> Any:
    return np.full(LARGE, float(x))


def shared_files() -> int:
    """Descriptors of this process that are shared memory."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += "memfd:shoal" in os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
    return found


def test_a_large_result_reaches_the_calls_that_need_it_and_is_not_opened_in_between(tmp_path: Path) -> None:
    path = tmp_path / "opened"
    with Pool(2) as pool:
        first, second = (pool.submit(make, str(path), x) for x in (1.0, 2.0))
        assert pool.submit(total, first, second).result() == 3.0 * LARGE
        assert first.then(total).result() == LARGE
        assert os.getpid() not in begun(path)
        assert first.result() is first.result()
        assert os.getpid() in begun(path)
        assert pool.submit(total, first).result() == LARGE  # once it was asked for, it is a value like any other


def test_a_large_result_outlives_the_process_that_made_it(tmp_path: Path) -> None:
    path = tmp_path / "opened"
    with Pool(1) as pool:
        first = pool.submit(make, str(path), 1.0)
        wait([first])
        [pid] = begun(Path(f"{path}-made"))
        os.kill(pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], 30)
        assert pool.submit(total, first).result() == LARGE
        assert first.result().array.sum() == LARGE
        assert begun(Path(f"{path}-made")) == [pid]


def test_nothing_is_held_of_results_that_nobody_holds_any_more() -> None:
    gc.collect()  # of other tests
    before = shared_files()
    with Pool(2) as pool:
        futures = [pool.submit(ones, x) for x in range(8)]
        wait(futures)
        assert shared_files() - before >= 8
        assert sum(future.result()[0] for future in futures) == 28.0
        later = [future.then(double) for future in futures]
        assert [future.result()[0] for future in later] == [2.0 * x for x in range(8)]
        futures.clear()
        later.clear()
        assert pool.submit(double, 1).result() == 2
    assert shared_files() == before


def test_a_reduction_of_large_results_has_their_sum() -> None:
    with Pool(2) as pool:
        joined = pool.reduce(operator.add, [pool.submit(ones, x) for x in range(9)])
        assert np.array_equal(joined.result(), np.full(LARGE, 36.0))
        assert np.array_equal(pool.submit(added, joined, joined).result(), np.full(LARGE, 72.0))


def test_a_large_result_that_cannot_be_opened_raises_why_wherever_it_is_needed() -> None:
    with Pool(1) as pool:
        future = pool.submit(spoilt)
        with pytest.raises(OddError, match="spoilt"):
            future.then(double).result()
        assert isinstance(future.exception(), OddError)
        with pytest.raises(OddError, match="spoilt"):
            future.result()
        assert isinstance(future.exception(), OddError)


def test_large_results_of_a_map_wait_on_disk_and_hold_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.tasks.pool.ROOM", 2 * LARGE)
    with Pool(2, run_dir=tmp_path / "kept") as pool:
        results = pool.map(ones, range(12), keep="disk")
        for _ in range(3_000):  # all calls are made, though nobody takes a result
            if not pool._running.entries:
                break
            pool.submit(double, 1).result()
        else:
            raise AssertionError("calls of a map wait, whose results are on disk")
        assert [array[0] for array in results] == list(range(12))
        assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["journal", "lock"]
    with Pool(1) as other:
        assert sorted(array[-1] for array in other.map(ones, range(3), keep="disk", ordered=False, buffersize=2)) == [0, 1, 2]


def test_a_parcel_in_a_file_is_opened_held_and_copied_like_any_other(tmp_path: Path) -> None:
    for value in (list(range(50_000)), {"a": np.arange(LARGE), "b": list(range(50_000))}):
        parcel = pack(value, folder=str(tmp_path))
        assert parcel.filed
        assert parcel.nbytes == len(parcel.data) < 1_000
        kept = held(parcel.data)
        assert kept is not None
        assert parcel.segment is not None
        parcel.segment.close()
        for data in (kept.data, whole(kept.data)):
            assert pack(opened(data)).nbytes == pack(value).nbytes
    assert list(tmp_path.iterdir()) == []
    assert pack([1, 2], folder=str(tmp_path)).segment is None


def test_a_result_stays_in_memory_if_the_folder_takes_no_file() -> None:
    parcel = pack(np.zeros(LARGE), folder="/proc/none")
    assert (parcel.filed, parcel.nbytes > 8 * LARGE) == (False, True)


def test_results_wait_on_disk_only_where_this_program_can_read_them() -> None:
    with (
        Pool(0, address="tcp://127.0.0.1:0") as pool,
        pytest.raises(UserError, match=r"^keep='disk': for pools of this machine"),
    ):
        pool.map(ones, [1], keep="disk")


def hears(gate: str, array: Any) -> float:
    """Wait until there is a file, then write into the array and return what was in it."""
    while not os.path.exists(gate):
        threading.Event().wait(0.01)
    was = float(array[0])
    array[:] = -1.0
    return was + float(array[-1]) + 1.0


def test_equal_arrays_of_calls_that_wait_lie_in_memory_once_and_each_call_has_its_own(tmp_path: Path) -> None:
    gate, array = tmp_path / "gate", np.ones(4 * LARGE)
    gc.collect()  # of other tests
    before = shared_files()
    with Pool(2) as pool:
        first = [pool.submit(hears, str(gate), given) for given in (array, array, array.copy())]
        mapped = pool.map(hears, [str(gate)] * 5, [array] * 5)
        held = [shared_files() - before]
        array[:] = 2.0
        second = [pool.submit(hears, str(gate), array) for _ in range(3)]
        held.append(shared_files() - before)
        gate.touch()
        assert [future.result() for future in first] == [1.0] * 3
        assert [future.result() for future in second] == [2.0] * 3
        assert list(mapped) == [1.0] * 5
    assert held == [2, 4]  # two descriptors each
    assert array[0] == 2.0
    assert shared_files() == before
