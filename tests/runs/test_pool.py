"""Pools of real processes: what an executor promises, and what it promises beyond that when processes die."""

from __future__ import annotations

import asyncio
import functools
import operator
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, as_completed, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

import shoal
from shoal.coordinator.deciding.resources import Need
from shoal.protocol.errors import NeedError, ProtocolError, UserError, WorkerLost
from shoal.protocol.trusted import GoneError, opened, pack
from shoal.tasks import entries, near
from shoal.tasks import running as running_module
from shoal.tasks.kept import Kept
from shoal.tasks.pool import Pool
from shoal.tasks.running import Running


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(2) as its:
        yield its


def double(x: Any) -> Any:
    return x * 2


def fails(x: int) -> int:
    raise KeyError(x)


ON_A_TERMINAL = """
import os

import shoal


def on_a_terminal(x):
    return os.isatty(0), os.read(0, 1)


with shoal.Pool(1) as pool:
    print(os.isatty(0), pool.submit(on_a_terminal, 1).result(timeout=60))
"""


def test_a_call_cannot_wait_for_what_a_person_types(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(ON_A_TERMINAL)
    here, there = os.openpty()
    try:
        made = subprocess.run(
            [sys.executable, "program.py"], cwd=tmp_path, stdin=there, capture_output=True, timeout=90, check=True
        )
    finally:
        os.close(here)
        os.close(there)
    assert made.stdout.decode().split() == ["True", "(False,", "b'')"]


def leaves(x: int) -> int:
    raise SystemExit(3)


class OddError(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def odd() -> None:
    raise OddError(1, 2)


def unfit() -> Any:
    return {"lock": threading.Lock()}


def own_pid(_: object = None) -> int:
    return os.getpid()


def touch(path: str, seconds: float = 0.0) -> int:
    """Leave a line for each time that this began; then take some time."""
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    threading.Event().wait(seconds)
    return os.getpid()


def dies(path: str, at: int, x: int) -> int:
    if x == at:
        touch(path)
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def begun(path: Path, times: int = 1) -> list[int]:
    """The processes that have begun, once there are so many."""
    for _ in range(1_000):
        if path.exists() and len(lines := path.read_text().split()) >= times:
            return [int(line) for line in lines]
        threading.Event().wait(0.02)
    raise AssertionError(f"{path} was not begun {times} times")


def test_calls_and_maps_give_what_the_functions_give(pool: Pool) -> None:
    assert pool.submit(double, 4).result() == 8
    assert pool.submit(dict, [(1, 2)], a=3).result() == {1: 2, "a": 3}
    assert pool.submit(functools.partial(pow, 2), 5).result() == 32
    assert pool.submit("abc".upper).result() == "ABC"
    assert list(pool.map(pow, range(50), [2] * 50)) == [x * x for x in range(50)]
    assert sorted(pool.map(double, range(300), ordered=False)) == [2 * x for x in range(300)]
    futures = [pool.submit(double, x) for x in range(300)]
    assert sorted(future.result() for future in as_completed(futures)) == [2 * x for x in range(300)]
    assert os.getpid() not in {pool.submit(own_pid).result() for _ in range(5)}


def test_what_a_call_raises_is_raised_here_with_the_traceback_there_as_its_cause(pool: Pool) -> None:
    with pytest.raises(KeyError, match="5") as caught:
        pool.submit(fails, 5).result()
    assert "raise KeyError(x)" in str(caught.value.__cause__)
    with pytest.raises(SystemExit):
        pool.submit(leaves, 1).result()
    with pytest.raises(RuntimeError, match="OddError: 1 and 2"):
        pool.submit(odd).result()
    with pytest.raises(UserError, match=r"^\['lock'\] cannot travel"):
        pool.submit(unfit).result()
    given = pool.map(fails, [1, 2])
    with pytest.raises(KeyError):
        next(given)


def test_what_cannot_travel_is_refused_at_once(pool: Pool) -> None:
    with pytest.raises(UserError, match=r"^args\[0\] cannot travel"):
        pool.submit(double, threading.Lock())
    with pytest.raises(TypeError, match="want a function first"):
        pool.submit(3)  # type: ignore[arg-type]
    for wrong in (0, -1, True, "2", 1.5):
        with pytest.raises(UserError, match="must be a whole number from 1"):
            Pool(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chunksize"):
        pool.map(double, [1], chunksize=0)


def test_functions_without_a_name_travel_by_value(pool: Pool) -> None:
    add = 7
    assert list(pool.map(lambda x: x + add, range(5))) == [7, 8, 9, 10, 11]


def test_large_arrays_come_back_whole_and_may_be_written(pool: Pool) -> None:
    array = np.arange(3_000_000, dtype="f8")
    futures = [pool.submit(double, array) for _ in range(4)]
    array[:] = 0.0  # too late for the calls
    for future in futures:
        result = future.result()
        result[0] += 1.0
        assert (result[0], result[-1], result.shape) == (1.0, 2.0 * 2_999_999, (3_000_000,))
    assert len(pool.submit(bytes, 50_000_000).result()) == 50_000_000


def test_results_of_a_map_that_nobody_takes_hold_up_its_further_calls(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.tasks.pool.ROOM", 3_000_000)
    given = pool.map(np.ones, [200_000] * 40)
    for _ in range(500):
        if "until results that are there are taken" in pool.status():
            break
        threading.Event().wait(0.01)
    assert "calls of a map wait until results that are there are taken from its iterator" in pool.status()
    assert pool.submit(double, 3).result() == 6  # other calls go on
    assert sum(float(one.sum()) for one in given) == 40 * 200_000


def test_a_call_that_has_not_begun_can_be_cancelled(tmp_path: Path) -> None:
    with Pool(1) as pool:
        first = pool.submit(touch, str(tmp_path / "first"), 0.3)
        second, third = pool.submit(touch, str(tmp_path / "second")), pool.submit(double, 1)
        begun(tmp_path / "first")
        assert (second.cancel(), first.cancel()) == (True, False)
        assert (third.result(), second.cancelled(), first.done()) == (2, True, True)
    assert not (tmp_path / "second").exists()


def test_a_running_call_can_be_killed_and_nothing_else_is_lost(tmp_path: Path) -> None:
    with Pool(1) as pool:
        hangs = pool.submit(touch, str(tmp_path / "hangs"), 3_600.0)
        others = [pool.submit(double, x) for x in range(20)]
        [pid] = begun(tmp_path / "hangs")
        assert hangs.kill()
        assert hangs.cancelled()
        with pytest.raises(CancelledError):
            hangs.result()
        assert [future.result() for future in others] == [2 * x for x in range(20)]
        assert not psutil.pid_exists(pid)
        assert (hangs.kill(), others[0].kill()) == (True, False)  # cancelled before; done before


def test_a_call_whose_answer_is_being_taken_in_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    nudged, killed = Running.nudged, list[bool]()

    def look(running: Running) -> bool:
        for name, lease in running.far.core.facts.ledger.leases.items() if running.far else ():
            if lease.folding:
                killed.extend(running._kill(number) for number in running.plan.given[name[1]].tickets)
        return nudged(running)

    monkeypatch.setattr(Running, "nudged", look)
    monkeypatch.setattr(running_module, "NEAR", False)  # with actors that may be anywhere, answers take a turn to come in
    with Pool(1) as pool:
        assert [pool.submit(double, x).result() for x in range(30)] == [2 * x for x in range(30)]
    assert killed
    assert not any(killed)


def test_a_worker_that_is_killed_costs_the_call_that_it_was_at_and_no_result(tmp_path: Path) -> None:
    with Pool(2) as pool:
        first = pool.submit(touch, str(tmp_path / "first"), 0.5)
        rest = [pool.submit(touch, str(tmp_path / "rest"), 0.02) for _ in range(15)]
        [pid] = begun(tmp_path / "first")
        os.kill(pid, signal.SIGKILL)
        assert first.result() != pid
        assert len([future.result() for future in rest]) == 15
        assert len(begun(tmp_path / "first")) == 2
        assert len(begun(tmp_path / "rest")) == 15
        assert pool.submit(double, 1).result() == 2


def test_a_call_that_ends_its_process_is_given_up_by_name_and_takes_no_other_along(tmp_path: Path) -> None:
    path = tmp_path / "deaths"
    with Pool(2, retries=2) as pool:
        list(pool.map(double, range(500)))
        futures = [pool.submit(dies, str(path), 77, x) for x in range(300)]
        wait(futures)
        assert [future.result() for x, future in enumerate(futures) if x != 77] == [x for x in range(300) if x != 77]
        with pytest.raises(WorkerLost, match=r"^dies ended its process 3 times; the last time: "):
            futures[77].result()
        assert len(begun(path)) == 3
        assert pool.submit(double, 1).result() == 2


def test_a_call_that_may_begin_once_is_not_tried_again(tmp_path: Path) -> None:
    with Pool(1) as pool:
        with pytest.raises(WorkerLost, match=r"^dies ended its process; the last time: "):
            pool.submit(dies, str(tmp_path / "once"), 1, 1, once=True).result()
        assert len(begun(tmp_path / "once")) == 1
        with pytest.raises(WorkerLost):
            pool.submit(dies, str(tmp_path / "never"), 1, 1, retries=0).result()


def test_a_worker_killed_again_and_again_loses_no_result(tmp_path: Path) -> None:
    with Pool(2, retries=20) as pool:
        futures = [pool.submit(touch, str(tmp_path / "calls"), 0.02) for _ in range(60)]
        seen = 0
        for _ in range(5):
            pids = begun(tmp_path / "calls", seen + 1)
            seen = len(pids)
            if psutil.pid_exists(pids[-1]):
                os.kill(pids[-1], signal.SIGKILL)
        assert len([future.result() for future in futures]) == 60
        near = pool._running.near
        assert near is not None
        assert near.near.heard == near.near.accepted + near.near.stale >= 60
        assert 60 <= len(begun(tmp_path / "calls")) <= 65


def test_with_actors_that_may_be_anywhere_a_killed_worker_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running_module, "NEAR", False)
    with Pool(2) as pool:
        first = pool.submit(touch, str(tmp_path / "first"), 0.3)
        rest = [pool.submit(double, x) for x in range(100)]
        [pid] = begun(tmp_path / "first")
        os.kill(pid, signal.SIGKILL)
        assert first.result() != pid
        assert [future.result() for future in rest] == [2 * x for x in range(100)]
        assert "waits for calls" in pool.status()
        assert pool._running.far is not None
        counts = pool._running.far.core.facts.ledger.counts
        assert counts.heard == counts.accepted + counts.duplicate + counts.stale + counts.refused


def test_calls_behind_a_slow_one_are_made_elsewhere(tmp_path: Path) -> None:
    with Pool(2) as pool:
        assert list(pool.map(_naps, [0.0] * 400)) == [0.0] * 400
        slow = pool.submit(_naps, 60.0)  # known as a short call, so others travel with it and wait behind it
        rest = [pool.submit(_naps, 0.001 * (x % 2)) for x in range(300)]
        assert [future.result(30) for future in rest] == [0.001 * (x % 2) for x in range(300)]
        assert not slow.done()
        assert slow.kill()


def test_a_stopped_process_is_ended_and_its_call_made_elsewhere(tmp_path: Path) -> None:
    with Pool(1) as pool:
        future = pool.submit(touch, str(tmp_path / "stopped"), 0.5)
        [pid] = begun(tmp_path / "stopped")
        os.kill(pid, signal.SIGSTOP)
        assert future.result(30) != pid


def test_arguments_and_results_of_any_size_travel() -> None:
    with Pool(2) as pool:
        for many in (60_000, 65_536, 70_000, 3_000_000):
            assert pool.submit(_twice, "x" * many).result() == "x" * (2 * many)
        assert [len(one) for one in pool.map(_twice, ["y" * 40_000] * 20)] == [80_000] * 20


def test_higher_priorities_go_first(tmp_path: Path) -> None:
    order = tmp_path / "order"
    with Pool(1) as pool:
        pool.submit(touch, str(tmp_path / "first"), 0.2)
        begun(tmp_path / "first")
        for name, priority in (("a", 0.0), ("b", 2.0), ("c", 1.0)):
            pool.submit(_append, str(order), name, priority=priority)
    assert order.read_text() == "bca"


def _naps(seconds: float) -> float:
    threading.Event().wait(seconds) if seconds else None
    return seconds


def _twice(text: str) -> str:
    return text + text


def _append(path: str, text: str) -> None:
    with open(path, "a") as file:
        file.write(text)


def test_a_pool_says_in_words_what_it_does(tmp_path: Path) -> None:
    with Pool(1) as pool:
        pool.submit(touch, str(tmp_path / "first"), 0.3)
        pool.submit(double, 1)
        begun(tmp_path / "first")
        told = pool.status()
        assert ": touch for 0." in told
        assert "1 calls wait, the first of double for 0." in told
        assert "1 of 1 actors are busy" in told
    assert pool.status() == "the pool has ended: the pool is shut down"


def test_a_pool_that_is_shut_down_takes_no_calls_ends_what_it_has_and_leaves_no_process(tmp_path: Path) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    pool = Pool(2)
    futures = [pool.submit(touch, str(tmp_path / "calls"), 0.01) for _ in range(20)]
    pool.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(double, 1)
    assert len([future.result() for future in futures]) == 20
    pool.shutdown()
    assert {child.pid for child in psutil.Process().children(recursive=True)} == before


def test_calls_that_wait_can_be_cancelled_at_the_end(tmp_path: Path) -> None:
    pool = Pool(1)
    futures = [pool.submit(touch, str(tmp_path / "calls"), 0.05) for _ in range(50)]
    begun(tmp_path / "calls")
    pool.shutdown(cancel_futures=True)
    cancelled = [future for future in futures if future.cancelled()]
    assert len(cancelled) >= 40
    assert all(future.done() for future in futures)


def test_a_pool_that_nobody_holds_ends_by_itself_after_its_calls() -> None:
    pool = Pool(1)
    running, results = pool._running, pool.map(double, range(20))
    del pool
    assert list(results) == [2 * x for x in range(20)]
    running.join(30)
    assert not running.is_alive()


def test_a_pool_made_in_a_thread_outlives_that_thread() -> None:
    made: list[Pool] = []
    thread = threading.Thread(target=lambda: made.append(Pool(1)))
    thread.start()
    thread.join()
    with made[0] as pool:
        assert [pool.submit(double, x).result() for x in range(3)] == [0, 2, 4]


PROGRAM = """
import os, sys, threading, time, shoal
def work(x):
    threading.Event().wait(0.2)
    os.write(1, b"done %d\\n" % x)  # one write: two processes may end at once
if __name__ == "__main__":
    pool = shoal.Pool(2)
    futures = [pool.submit(work, x) for x in range(3)]
    {end}
"""


def test_a_program_ends_when_its_calls_are_done() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(end="")], capture_output=True, text=True, check=False, timeout=60
    )
    assert (sorted(done.stdout.split("\n")), done.stderr) == (["", "done 0", "done 1", "done 2"], "")


def test_a_program_that_is_killed_leaves_no_process() -> None:
    end = "futures[0].result(); print('ready', flush=True); threading.Event().wait(60)"
    program = subprocess.Popen([sys.executable, "-c", PROGRAM.format(end=end)], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    assert any(line == "ready\n" for line in iter(program.stdout.readline, ""))  # "": it has ended
    children = psutil.Process(program.pid).children(recursive=True)
    assert len(children) == 3
    program.kill()
    program.wait()
    program.stdout.close()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


def test_a_function_that_was_defined_after_the_pool_is_the_one_that_is_called() -> None:
    code = """
import shoal
def f(x): return "old"
if __name__ == "__main__":
    with shoal.Pool(1) as pool:
        assert pool.submit(f, 1).result() == "old"
        def f(x): return "new"
        assert pool.submit(f, 1).result() == "new"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def total(array: Any) -> float:
    return float(array.sum())


def spoil(array: Any) -> None:
    array[0] = 1.0


def drawn() -> int:
    return shoal.seed()


def together(parts: list[float], factor: float = 1.0) -> float:
    return sum(parts) * factor


def test_a_value_that_was_put_is_read_in_place_and_cannot_be_written(pool: Pool) -> None:
    array = np.arange(2_000_000, dtype="f8")
    put = pool.put(array)
    assert put.value is array
    assert [pool.submit(total, put).result() for _ in range(3)] == [array.sum()] * 3
    with pytest.raises(ValueError, match="read-only"):
        pool.submit(spoil, put).result()
    last = pool.submit(total, {"x": put}["x"])
    del put
    assert last.result() == array.sum()
    assert pool.submit(double, pool.put("small")).result() == "smallsmall"


def test_memory_of_a_value_that_was_put_is_given_back(pool: Pool) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        assert pool.submit(total, pool.put(np.ones(100_000))).result() == 100_000.0
        pool.submit(total, np.ones(100_000)).result()
    assert pool.submit(double, 1).result() == 2
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_future_as_an_argument_is_its_result(pool: Pool) -> None:
    one, two = pool.submit(double, 1), pool.submit(double, 2)
    assert pool.submit(pow, one, two).result() == 16
    assert pool.submit(together, [one, two, 0.5], factor=two).result() == 26.0
    assert pool.submit(double, one).then(pow, 3).result() == 64
    assert pool.map(double, [3, 1, 2]).then(sorted, reverse=True).result() == [6, 4, 2]


def test_what_depends_on_a_failure_fails_at_once_with_the_first_cause(pool: Pool, tmp_path: Path) -> None:
    slow = pool.submit(touch, str(tmp_path / "slow"), 3_600.0)
    last = pool.submit(together, [slow, pool.submit(fails, 9)]).then(double)
    with pytest.raises(KeyError, match="9"):
        last.result()
    begun(tmp_path / "slow")
    after = pool.submit(double, slow)
    assert slow.kill()
    with pytest.raises(CancelledError):
        after.result()


def test_a_pool_that_is_shut_down_makes_the_calls_that_wait_for_others(tmp_path: Path) -> None:
    with Pool(1) as pool:
        last = pool.submit(touch, str(tmp_path / "first"), 0.1)
        for _ in range(5):
            last = pool.submit(max, last, 0)
    assert last.result() > 0


def test_a_reduction_has_the_bits_of_one_tree_for_any_number_of_actors() -> None:
    draws = np.random.default_rng(0)
    items = [float(x) for x in draws.normal(size=37) * 10.0 ** draws.integers(-9, 9, 37)]
    level = items
    while len(level) > 1:
        level = [sum(level[at : at + 2]) for at in range(0, len(level), 2)]
    for actors in (1, 3):
        with Pool(actors) as pool:
            assert pool.reduce(operator.add, items).result() == level[0]
            assert pool.reduce(operator.add, [pool.submit(float, x) for x in items]).result() == level[0]
            assert pool.reduce(operator.add, [5]).result() == 5
            with pytest.raises(UserError, match="at least one item"):
                pool.reduce(operator.add, [])


def test_the_seed_of_a_call_depends_on_its_number_alone() -> None:
    seeds = []
    for actors, seed in ((1, 0), (3, 0), (2, 1)):
        with Pool(actors, seed=seed) as pool:
            seeds.append([future.result() for future in [pool.submit(drawn) for _ in range(50)]])
    assert seeds[0] == seeds[1]
    assert len({*seeds[0], *seeds[2]}) == 100
    with pytest.raises(RuntimeError, match="is the seed of a call"):
        shoal.seed()


def test_a_worker_computes_with_as_many_threads_as_the_pool_says() -> None:
    for threads in (1, 2):
        with Pool(1, threads=threads) as pool:
            assert pool.submit(os.getenv, "OMP_NUM_THREADS").result() == str(threads)
            assert pool.submit(_most_threads).result() <= threads
    with pytest.raises(UserError, match="threads=0: must be a whole number from 1"):
        Pool(1, threads=0)


def test_calls_get_the_cores_and_gpus_that_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    with Pool(2) as pool:
        most = int(pool._running.machine.cores)
        with pytest.raises(NeedError, match=f"this call needs {most + 1} cores, and the machine has {most} cores"):
            pool.submit(double, 1, need=Need(cores=most + 1))
        with pytest.raises(NeedError, match="needs 1 cores and 3 GPUs"):
            pool.submit(double, 1, need=Need(gpus=3))
        assert pool.submit(os.getenv, "CUDA_VISIBLE_DEVICES", need=Need(gpus=2)).result() == "GPU-a,GPU-b"
        assert pool.submit(os.getenv, "CUDA_VISIBLE_DEVICES", need=Need(gpus=0.5)).result() in ("GPU-a", "GPU-b")
        seen = list(pool.map(_device_and_pid, range(6), need=Need(cores=0, gpus=1)))
        assert {device for device, _ in seen} <= {"GPU-a", "GPU-b"}
        assert len({pid for _, pid in seen}) == 6  # CUDA keeps to the devices with which it began
        assert pool.submit(os.getenv, "OMP_NUM_THREADS", need=Need(cores=most)).result() == str(most)
        assert pool.submit(os.getenv, "OMP_NUM_THREADS").result() == "1"
        wide = [pool.submit(touch, str(tmp_path / "wide"), 0.2, need=Need(cores=most)) for _ in range(2)]
        begun(tmp_path / "wide")
        assert f"it needs {most} cores, and there are not enough cores left" in pool.status()
        assert len([future.result() for future in wide]) == 2
    assert pool._running.machine.used_cores == 0.0


def _device_and_pid(_: int) -> tuple[str, int]:
    return os.environ["CUDA_VISIBLE_DEVICES"], os.getpid()


def _most_threads() -> int:
    from threadpoolctl import threadpool_info

    return max([int(one["num_threads"]) for one in threadpool_info()], default=1)


def test_calls_can_be_awaited_and_an_await_that_is_cancelled_ends_its_call(tmp_path: Path) -> None:
    async def story() -> None:
        async with Pool(2) as pool:
            assert await pool.run(double, 3) == 6
            with pytest.raises(KeyError):
                await pool.run(fails, 1)
            assert await asyncio.gather(*[pool.run(double, x) for x in range(100)]) == [2 * x for x in range(100)]
            labels = {pool.submit(double, x): f"of {x}" for x in range(20)}
            assert {label: value async for label, value in pool.completed(labels)} == {f"of {x}": 2 * x for x in range(20)}
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await pool.run(touch, str(tmp_path / "slow"), 3_600.0)
            for pid in begun(tmp_path / "slow"):
                psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=10)
                assert not psutil.pid_exists(pid)
            assert await pool.run(double, 4) == 8

    asyncio.run(story())


def test_of_a_thousand_awaits_half_cancelled_none_is_left() -> None:
    async def story() -> None:
        async with Pool(2, retries=50) as pool:
            draws = random.Random(0)
            await pool.run(double, 1)
            tasks = [asyncio.create_task(pool.run(double, x)) for x in range(1_000)]
            await asyncio.sleep(0)
            for task in draws.sample(tasks, 500):
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(one == 2 * x or isinstance(one, asyncio.CancelledError) for x, one in enumerate(done))
            assert sum(isinstance(one, asyncio.CancelledError) for one in done) <= 500
            running = pool._running
        assert running.entries == {}
        assert running.near is not None
        assert running.near.near.heard == running.near.near.accepted + running.near.near.stale

    asyncio.run(story())


def test_a_task_that_is_gone_before_its_calls_are_packed_has_none() -> None:
    running = Running(1, 0, None, None, None, 1)
    assert running.calls(3) == []  # it was withdrawn in the turn in which it was given out


def test_who_kills_a_call_does_not_wait_for_a_pool_that_fails_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    running = Running(1, 0, None, None, None, 1)
    asked = threading.Event()
    monkeypatch.setattr(running, "_kill", lambda number: 1 // 0)
    monkeypatch.setattr(running, "_wake", asked.set)
    killer = threading.Thread(target=running.kill, args=(7,), daemon=True)
    killer.start()
    asked.wait()
    with pytest.raises(ZeroDivisionError):
        running._take_in()
    killer.join(30)
    assert not killer.is_alive()


RESUMED = """
import os, sys, threading, shoal, operator
import numpy as np
def work(x, weights):
    with open(f"begun-{x}", "a") as file:
        file.write("x")
    threading.Event().wait(0.1)
    if x == 3 and not os.path.exists("failed"):
        open("failed", "w").close()
        raise ValueError("once")
    return x + float(weights.sum()), np.full(50_000, float(x))
with shoal.Pool(2, run_dir="kept") as pool:
    weights = pool.put(np.ones(100_000))
    results = []
    futures = [pool.submit(work, x, weights) for x in range(12)]
    for x, future in enumerate(futures):
        if x != 3 or future.exception() is None:
            results.append(future.result()[0])
            assert future.result()[1].sum() == 50_000.0 * x
        print("had", x, flush=True)
    total = pool.reduce(operator.add, results).result()
    os.write(1, b"total %d" % total)
"""


def test_a_program_that_is_killed_and_started_again_makes_only_the_calls_without_a_result(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(RESUMED)
    words = [sys.executable, "program.py"]
    program = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    had = 0
    for line in iter(program.stdout.readline, ""):
        had = int(line.split()[1]) + 1
        if had == 5:
            break
    children = psutil.Process(program.pid).children(recursive=True)
    program.kill()
    program.wait()
    program.stdout.close()
    assert psutil.wait_procs(children, timeout=10)[1] == []
    again = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert again.stderr == ""
    assert again.stdout.endswith(f"total {sum(range(12)) + 12 * 100_000}")
    times = [len((tmp_path / f"begun-{x}").read_text()) for x in range(12)]
    assert [many for x, many in enumerate(times[:had]) if x != 3] == [1] * (had - 1)
    assert times[3] == 2  # what a call raises is no result
    third = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert third.stdout == again.stdout
    assert [len((tmp_path / f"begun-{x}").read_text()) for x in range(12)] == times


def test_calls_that_are_the_same_have_a_result_each_and_a_folder_has_one_pool(tmp_path: Path) -> None:
    for life in range(2):
        with Pool(1, run_dir=tmp_path / "kept") as pool:
            pids = [future.result() for future in [pool.submit(touch, str(tmp_path / "calls")) for _ in range(3)]]
            other = pool.submit(touch, str(tmp_path / "calls"), key=f"life {life}").result()
            with pytest.raises(UserError, match="is in use"):
                Pool(1, run_dir=tmp_path / "kept")
        assert len(begun(tmp_path / "calls")) == 4 + life
        assert (other in pids) == (life == 0)


def test_a_result_that_this_user_did_not_sign_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def life(secret: bytes) -> Kept:
        monkeypatch.setattr("shoal.protocol.keys.KeyFolder", lambda: SimpleNamespace(secret=lambda: secret))
        return Kept(tmp_path / "kept", told.append)

    own = life(b"mine")
    own.add(b"k" * 16, b".my parcel")
    own._journal.append(b"f" * 48, b"a forged parcel")
    own.commit()
    own.close()
    again = life(b"mine")
    assert (again.found(b"k" * 16), again.found(b"f" * 16)) == (b".my parcel", None)
    again.close()
    other = life(b"another user's")
    assert (other.found(b"k" * 16), other.found(b"f" * 16)) == (None, None)
    other.close()
    assert [text.split(" in ")[0] for text in told] == ["1 results", "2 results"]
    assert "not signed by this user" in told[0]


@pytest.mark.slow
def test_cpython_s_own_tests_of_executors_pass() -> None:
    program = Path(__file__).with_name("cpython_executor.py")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False, timeout=600)
    if done.returncode == 77:
        pytest.skip("this Python comes without Lib/test/test_concurrent_futures")
    assert done.returncode == 0, done.stderr[-3_000:]


def test_the_public_names_are_these() -> None:
    assert (shoal.Pool, shoal.WorkerLost) == (Pool, WorkerLost)


def test_a_result_that_is_gone_with_its_process_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real, times = entries.opened, [0]

    def gone(data: bytes) -> Any:
        times[0] += 1
        if times[0] == 1:
            raise GoneError("shared memory cannot be opened")
        return real(data)

    with Pool(1) as pool:
        monkeypatch.setattr(entries, "opened", gone)
        assert (pool.submit(double, 2).result(), times) == (4, [2])
        times[0] = 0
        with pytest.raises(WorkerLost, match=r"^double was done, and its process ended before its result was read"):
            pool.submit(double, 2, once=True).result()
        times[0] = 0
        with pytest.raises(WorkerLost, match=r"^double was done"):
            pool.submit(double, 2, retries=0).result()


def test_answers_that_are_gone_with_their_process_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real, times = near.Segment.open, [0]

    def gone(*words: Any, **how: Any) -> Any:
        times[0] += 1
        if times[0] == 1:
            raise ProtocolError("shared memory cannot be opened")
        return real(*words, **how)

    with Pool(1) as pool:
        monkeypatch.setattr(near.Segment, "open", gone)
        assert len(pool.submit(bytes, 100_000).result()) == 100_000  # more than a message holds
    assert times[0] >= 2


class HostileError(Exception):
    """An exception whose own code fails: `how` says where."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how

    def __reduce__(self) -> tuple[Any, ...]:
        if self.how == "packed":
            raise SystemExit(3)
        return sys.exit, (3,)

    def __str__(self) -> str:
        if self.how == "silent":
            raise ValueError("no text")
        return self.how


def hostile(how: str) -> None:
    raise HostileError(how)


class Interrupts:
    """A result that ends what opens it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return interrupted, ()


def interrupted() -> None:
    raise KeyboardInterrupt("opened")


def interrupts(x: int) -> Any:
    return Interrupts() if x == 90 else x


@pytest.mark.parametrize("how", ["packed", "opened", "silent"])
def test_an_exception_whose_own_code_fails_is_told_as_text_and_ends_no_process(how: str) -> None:
    with Pool(1) as pool:
        before = pool.submit(own_pid).result()
        with pytest.raises(RuntimeError, match=f"HostileError: {'an exception that cannot' if how == 'silent' else how}"):
            pool.submit(hostile, how).result()
        with pytest.raises(RuntimeError, match="HostileError"):
            list(pool.map(hostile, [how] * 200))
        assert pool.submit(own_pid).result() == before


def test_a_result_that_interrupts_what_opens_it_fails_its_own_call_and_not_the_pool() -> None:
    with Pool(1) as pool:
        with pytest.raises(KeyboardInterrupt, match="opened"):
            pool.submit(interrupts, 90).result()
        with pytest.raises(KeyboardInterrupt, match="opened"):
            pool.submit(interrupts, 90, retry_on=(OSError,)).result()
        results = pool.map(interrupts, range(200))
        assert [next(results) for _ in range(90)] == list(range(90))
        with pytest.raises(KeyboardInterrupt, match="opened"):
            next(results)
        assert pool.submit(double, 4).result() == 8


def test_a_call_that_is_offered_while_a_pool_fails_fails_too(monkeypatch: pytest.MonkeyPatch) -> None:
    offering = threading.Event()
    monkeypatch.setattr(Running, "ends", lambda self: "a fault" if offering.is_set() else "")
    with Pool(1) as pool:
        running, own = pool._running, pool._running.nudge

        def late() -> None:  # the pool ends between the offer and the word of it
            offering.set()
            running.join(10)
            own()

        monkeypatch.setattr(running, "nudge", late)
        with pytest.raises(WorkerLost, match="a fault"):
            pool.submit(double, 1).result(timeout=10)


def leave(future: object) -> None:
    raise SystemExit(3)


def test_a_callback_that_exits_ends_neither_the_pool_nor_the_next_callback(caplog: pytest.LogCaptureFixture) -> None:
    heard = threading.Event()
    with Pool(1) as pool:
        gate: Future[int] = Future()
        future = pool.submit(double, gate)
        future.add_done_callback(leave)
        future.add_done_callback(lambda _: heard.set())
        gate.set_result(1)
        assert future.result() == 2
        assert heard.wait(10)
        assert pool.submit(double, 2).result() == 4
    assert "SystemExit: 3" in caplog.text


def test_large_arguments_leave_the_last_descriptors_to_the_program_and_to_new_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange(20_000.0)
    first = pack(array)
    assert first.segment is not None
    most = first.segment.handle[1] + 2
    monkeypatch.setattr(resource, "getrlimit", lambda which: (most, 1 << 20))
    inline = pack(array)
    assert inline.segment is None
    np.testing.assert_array_equal(opened(inline.data), array)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert pack(array).segment is not None


LIGHT = """
import sys, shoal
def loaded(names):
    return sorted(set(names) & set(sys.modules))
with shoal.Pool(1) as pool:
    names = ["numpy", "zmq", "psutil", "asyncio", "torch", "threadpoolctl"]
    there = pool.submit(loaded, names).result()
    assert sum(pool.map(abs, range(100))) == 4_950
    assert pool.submit(bytes, 100_000).result() == bytes(100_000)
    print(there, loaded(names))
"""


def test_a_pool_of_plain_calls_loads_no_numpy_here_or_there() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout == "[] []\n"


def test_of_calls_that_are_cancelled_at_once_those_that_idle_processes_take_are_made() -> None:
    for _ in range(3):
        pool = Pool(2)
        futures = [pool.submit(double, x) for x in range(50)]
        pool.shutdown(cancel_futures=True)
        assert any(not future.cancelled() for future in futures)
