"""Maps of many short calls, of which hundreds travel as one: each still has a seed, a place and a fault of its own."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shoal
from shoal.actors.workers.many import BLOCK
from shoal.protocol.errors import UserError, WorkerLost
from shoal.tasks.futures import RemoteTraceback
from shoal.tasks.pool import Pool
from shoal.tasks.running import Running

MANY = 3_000


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(2) as its:
        yield its


def double(x: int) -> int:
    return 2 * x


def drawn(x: int) -> int:
    return shoal.seed()


def fails(x: int) -> int:
    if x == 777:
        raise KeyError(x)
    return x


def strange(x: int) -> Any:
    return threading.Lock() if x == 500 else x


def noted(path: str, x: int, poison: int) -> int:
    with open(path, "ab", buffering=0) as file:
        file.write(b"%d\n" % x)
    if x == poison:
        os._exit(9)
    return x


def naps(x: int) -> int:
    if x == 400:
        threading.Event().wait(0.5)
    return x


def test_results_stand_in_the_order_of_their_items(pool: Pool) -> None:
    assert list(pool.map(double, range(MANY))) == [2 * x for x in range(MANY)]
    assert Counter(pool.map(double, range(MANY), ordered=False)) == Counter(2 * x for x in range(MANY))
    assert list(pool.map(max, range(200), range(200, 0, -1))) == [max(x, 200 - x) for x in range(200)]
    assert pool.map(double, range(MANY)).then(sum).result() == MANY * (MANY - 1)


def test_few_tasks_carry_many_calls(pool: Pool) -> None:
    near = pool._running.near
    assert near is not None
    list(pool.map(double, range(MANY)))
    before = near.near.heard
    list(pool.map(double, range(MANY)))
    assert near.near.heard - before < MANY / 10


def test_seeds_are_those_of_single_calls() -> None:
    with Pool(1, seed=3) as one, Pool(2, seed=3) as two:
        singly = [one.submit(drawn, x).result() for x in range(300)]
        assert list(two.map(drawn, range(300))) == singly
        assert two.submit(drawn, 0).result() == one.submit(drawn, 0).result()


def test_an_exception_is_raised_at_its_place_and_the_rest_is_given_up(pool: Pool) -> None:
    results = pool.map(fails, range(MANY))
    assert [next(results) for _ in range(777)] == list(range(777))
    with pytest.raises(KeyError, match="777") as raised:
        next(results)
    assert isinstance(raised.value.__cause__, RemoteTraceback)
    with pytest.raises(StopIteration):
        next(results)
    with pytest.raises(KeyError):
        pool.map(fails, range(MANY)).then(sum).result()
    assert pool.submit(double, 1).result() == 2


def test_a_result_that_cannot_travel_is_the_fault_of_its_call_alone(pool: Pool) -> None:
    results = pool.map(strange, range(1_000))
    assert [next(results) for _ in range(500)] == list(range(500))
    with pytest.raises(UserError, match="lock"):
        next(results)


def test_arguments_that_cannot_travel_are_named(pool: Pool) -> None:
    with pytest.raises(UserError, match=r"args\[0\]"):
        list(pool.map(double, [threading.Lock()] * 100))  # type: ignore[list-item]
    results = pool.map(repr, [*range(500), threading.Lock(), *range(500)])
    with pytest.raises(UserError, match=r"args\[0\]"):
        list(results)
    assert pool.submit(double, 1).result() == 2


def test_of_many_calls_only_the_one_that_ends_its_process_is_lost(tmp_path: Path) -> None:
    with Pool(2, retries=1) as pool:
        assert list(pool.map(noted, [str(tmp_path / "before")] * 500, range(500), [-1] * 500)) == list(range(500))
        results = pool.map(noted, [str(tmp_path / "calls")] * 600, range(600), [431] * 600)
        assert [next(results) for _ in range(431)] == list(range(431))
        with pytest.raises(WorkerLost, match="noted ended its process 2 times"):
            next(results)
        begun = Counter((tmp_path / "calls").read_text().split())
        assert begun["431"] == 3  # once among others, and as often as a call may by itself


def gated(folder: str, slow: int, x: int) -> int:
    """Leave a line; the slow call leaves its process's number and waits for a file."""
    with open(f"{folder}/{os.getpid()}", "a", buffering=1) as file:
        file.write(f"{x}\n")
    if x == slow:
        with open(f"{folder}/slow", "w") as file:
            file.write(str(os.getpid()))
    while x == slow and not os.path.exists(f"{folder}/gate"):
        threading.Event().wait(0.01)
    return x


@pytest.mark.parametrize("killed", [False, True])
def test_calls_behind_a_slow_one_of_their_piece_are_made_elsewhere_and_each_is_made_once(tmp_path: Path, killed: bool) -> None:
    (tmp_path / "before").mkdir()
    with Pool(2) as pool:
        assert len(list(pool.map(gated, [str(tmp_path / "before")] * MANY, [-1] * MANY, range(MANY)))) == MANY
        results = pool.map(gated, [str(tmp_path)] * MANY, [MANY // 2] * MANY, range(MANY))

        def begun() -> Counter[str]:
            return Counter(line for one in tmp_path.iterdir() if one.name.isdigit() for line in one.read_text().split())

        for _ in range(3_000):
            if len(begun()) >= MANY - BLOCK:
                break
            threading.Event().wait(0.01)
        assert len(begun()) >= MANY - BLOCK  # at most those that its process had claimed wait for it
        if killed:
            os.kill(int((tmp_path / "slow").read_text()), signal.SIGKILL)
        (tmp_path / "gate").touch()
        assert list(results) == list(range(MANY))
        times = begun()
        assert times.keys() == set(map(str, range(MANY)))
        assert max(times.values()) == 1 + killed  # what had not come back is made again, and what was taken back is not


def stops(x: int) -> int:
    if x % 300 == 299:
        raise StopIteration(x)
    return x


def test_a_stop_iteration_of_a_call_ends_that_call_alone(pool: Pool) -> None:
    list(pool.map(stops, range(200)))
    results = pool.map(stops, range(1_000))
    assert [next(results) for _ in range(299)] == list(range(299))
    with pytest.raises(RuntimeError, match="StopIteration"):
        next(results)


def test_calls_behind_a_slow_one_are_left_and_made_again_by_themselves(pool: Pool) -> None:
    list(pool.map(naps, [0] * 500))
    assert list(pool.map(naps, range(1_000))) == list(range(1_000))


def test_large_arguments_and_results_are_not_put_together(pool: Pool) -> None:
    rows = np.ones((100, 20_000))
    assert [float(row.sum()) for row in pool.map(np.negative, rows)] == [-20_000.0] * 100


def test_a_pool_that_is_left_makes_all_calls_of_its_maps() -> None:
    with Pool(2) as pool:
        results = pool.map(double, range(MANY))
    assert sum(results) == MANY * (MANY - 1)


def test_calls_that_are_cancelled_at_the_end_are_told_so(tmp_path: Path) -> None:
    pool = Pool(1)
    results = pool.map(_waits, [0.01] * 200)
    next(results)
    pool.shutdown(cancel_futures=True)
    with pytest.raises(CancelledError):
        list(results)


def _waits(seconds: float) -> None:
    threading.Event().wait(seconds)


def test_a_pool_that_fails_fails_its_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = [""]
    monkeypatch.setattr(Running, "ends", lambda self: ended[0])
    pool = Pool(1)
    results = pool.map(_waits, [0.01] * 200)
    ended[0] = "a test ends it"
    with pytest.raises(WorkerLost, match="a test ends it"):
        list(results)
    with pytest.raises(WorkerLost):
        pool.map(double, range(MANY))
    pool.shutdown()


def test_the_time_of_a_map_is_up(pool: Pool) -> None:
    results = pool.map(_waits, [0.05] * 100, timeout=0.3)
    with pytest.raises(TimeoutError):
        list(results)
    assert pool.submit(double, 1).result() == 2
