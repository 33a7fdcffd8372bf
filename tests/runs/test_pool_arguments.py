"""What the arguments of a pool's calls promise: ends in time, tries, order, results a few at a time."""

from __future__ import annotations

import operator
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from test_pool import begun, double, fails, touch

import shoal
from shoal.coordinator.deciding.resources import Need
from shoal.protocol.errors import UserError
from shoal.tasks.pool import Pool


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(2) as its:
        yield its


def until_cancelled(path: str) -> str:
    touch(path)
    for _ in range(2_000):
        if shoal.cancelled():
            return "gave up"
        threading.Event().wait(0.01)
    return "never asked"


def fails_twice(path: str, kind: str) -> int:
    touch(path)
    times = len(Path(path).read_text().split())
    if times < 3:
        raise {"os": OSError, "key": KeyError}[kind](times)
    return times


def writes(array: Any) -> float:
    array += 1.0
    return float(array.sum())


def append(path: str, text: str) -> None:
    with open(path, "a") as file:
        file.write(text)


def test_a_call_that_takes_too_long_is_ended_and_others_go_on(pool: Pool, tmp_path: Path) -> None:
    slow = pool.submit(touch, str(tmp_path / "slow"), 3_600.0, timeout=0.3)
    others = [pool.submit(double, x) for x in range(30)]
    [pid] = begun(tmp_path / "slow")
    with pytest.raises(TimeoutError, match=r"^touch took longer than timeout=0.3 s, and its process was ended$"):
        slow.result(60)
    assert [one.result() for one in others] == [2 * x for x in range(30)]
    assert pool.submit(double, 1, timeout=60.0).result() == 2
    assert len(begun(tmp_path / "slow")) == 1
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], 10)
    assert not psutil.pid_exists(pid)


def test_a_running_call_hears_that_it_is_to_be_cancelled_and_another_does_not(pool: Pool, tmp_path: Path) -> None:
    asked, other = (pool.submit(until_cancelled, str(tmp_path / name)) for name in ("asked", "other"))
    begun(tmp_path / "asked")
    begun(tmp_path / "other")
    assert asked.cancel() is False
    assert asked.result() == "gave up"
    assert not other.done()
    assert (other.cancel(), other.result(), other.cancel()) == (False, "gave up", False)
    with pytest.raises(RuntimeError, match=r"shoal.cancelled\(\) is for a call of a shoal.Pool"):
        shoal.cancelled()


def test_a_call_is_made_again_after_the_exceptions_that_its_caller_names(pool: Pool, tmp_path: Path) -> None:
    assert pool.submit(fails_twice, str(tmp_path / "a"), "os", retry_on=OSError).result() == 3
    with pytest.raises(OSError, match="2"):
        pool.submit(fails_twice, str(tmp_path / "b"), "os", retry_on=(OSError,), retries=1).result()
    with pytest.raises(KeyError):
        pool.submit(fails_twice, str(tmp_path / "c"), "key", retry_on=(OSError, ValueError)).result()
    assert len(begun(tmp_path / "c")) == 1
    assert list(pool.map(fails_twice, [str(tmp_path / "d")], ["key"], retry_on=(KeyError,))) == [3]


def test_what_a_call_costs_may_be_said_for_one_or_by_a_function_for_each_item(tmp_path: Path) -> None:
    with Pool(1) as pool:
        first = pool.submit(touch, str(tmp_path / "first"), 0.2, priority=60)
        begun(tmp_path / "first")
        for name, cost in (("a", 1.0), ("b", None), ("c", 20.0)):
            pool.submit(append, str(tmp_path / "order"), name, cost=cost)
        pool.submit(append, str(tmp_path / "order"), "d", priority=1)
        given = pool.map(append, [str(tmp_path / "order")] * 2, "ef", cost=lambda path, text: {"e": 2.0, "f": 3.0}[text])
        first.result()
        list(given)
    assert sorted((tmp_path / "order").read_text()) == list("abcdef")
    assert (tmp_path / "order").read_text()[0] == "d"


@pytest.mark.parametrize("ordered", [True, False])
def test_a_map_with_a_buffersize_takes_items_as_its_results_are_taken(pool: Pool, ordered: bool) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for x in range(20):
            taken.append(x)
            yield x

    given = pool.map(double, items(), buffersize=3, ordered=ordered)
    assert taken == [0, 1, 2]
    first = next(given)
    assert first in (0, 2, 4)
    assert taken == [0, 1, 2, 3]
    assert sorted([first, *given]) == [2 * x for x in range(20)]
    assert list(pool.map(double, [], buffersize=2)) == []
    assert list(pool.map(double, [5], buffersize=2, ordered=ordered)) == [10]
    with pytest.raises(KeyError):
        list(pool.map(fails, [1, 2, 3], buffersize=1, ordered=ordered))
    with pytest.raises(UserError, match="leave buffersize out"):
        pool.map(double, [1], buffersize=1).then(sum)


def test_a_map_with_a_buffersize_that_nobody_reads_on_cancels_what_has_not_begun(tmp_path: Path) -> None:
    with Pool(1) as pool:
        given = pool.map(touch, [str(tmp_path / "calls")] * 9, [0.2] * 9, buffersize=4)
        next(given)
        del given
    assert len(begun(tmp_path / "calls")) < 5


def test_futures_can_be_gathered(pool: Pool) -> None:
    assert pool.gather(pool.submit(double, x) for x in range(5)).then(sum).result() == 20
    assert pool.gather([]).result() == []
    never: Future[int] = Future()
    with pytest.raises(KeyError):
        pool.gather([never, pool.submit(fails, 1)]).result()
    with pytest.raises(UserError, match="gather: expected futures, and one is 3"):
        pool.gather([never, 3])  # type: ignore[list-item]


def test_a_put_value_with_copy_may_be_written_by_each_call(pool: Pool) -> None:
    shared, own = pool.put(np.zeros(100_000)), pool.put(np.zeros(100_000), copy=True)
    with pytest.raises(ValueError, match="read-only"):
        pool.submit(writes, shared).result()
    assert [pool.submit(writes, own).result() for _ in range(4)] == [100_000.0] * 4
    assert own.value.sum() == 0.0


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"timeout": 0}, r"^timeout=0: must be a number of seconds above 0"),
        ({"timeout": "2"}, r"^timeout='2': must be"),
        ({"retry_on": "OSError"}, r"^retry_on='OSError': must be exception types"),
        ({"retry_on": OSError("x")}, r"^retry_on=.*: must be exception types"),
        ({"retry_on": OSError, "once": True}, r"^once=True and retry_on=.*give one of the two$"),
        ({"cost": -1}, r"^cost=-1: must be"),
        ({"cost": float("nan")}, r"^cost=nan: must be"),
        ({"priority": "high"}, r"^priority='high': must be a number"),
        ({"priority": 10**400}, r"^priority=1000*: must be a number"),
        ({"timeout": 10**400}, r"^timeout=1000*: must be"),
        ({"key": 5}, r"^key=5: must be text"),
        ({"retries": -1}, r"^retries=-1: must be a whole number from 0"),
        ({"need": 2}, r"^need=2: must be a shoal.Need"),
    ],
)
def test_a_wish_that_cannot_be_kept_is_refused_in_one_line(pool: Pool, wish: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        pool.submit(double, 1, **wish)
    assert "\n" not in str(caught.value)
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="buffersize"):
            pool.map(double, [1], buffersize=wrong)
    with pytest.raises(TypeError, match="buffersize"):
        pool.map(double, [1], buffersize=1.5)  # type: ignore[arg-type]


def nested() -> tuple[int, int]:
    import joblib

    with Pool() as inner:
        return joblib.cpu_count(), inner.submit(double, inner._running.actors).result()


def test_a_call_that_makes_a_pool_or_calls_joblib_has_its_own_cores() -> None:
    with Pool(3) as pool:
        assert pool.submit(nested).result() == (1, 2)
        assert pool.submit(nested, need=Need(cores=2)).result() == (2, 4)
        assert pool.submit(nested).result() == (1, 2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"actors": np.float64(0)}, r"^actors=.*0.*: must be a whole number from 1"),
        ({"address": 5555}, r"^address=5555: must be text"),
        ({"progress": "yes"}, r"^progress='yes': must be True or False$"),
        ({"actors": 1, "run_dir": "/etc/passwd"}, r"^run_dir='/etc/passwd': File exists; give a folder"),
        ({"actors": 1, "run_dir": "/proc/x/y"}, r"^run_dir='/proc/x/y': No such file or directory; give a folder"),
    ],
)
def test_a_pool_that_cannot_be_made_says_so_in_one_line(words: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        Pool(**words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"timeout": "5"}, r"^timeout='5': must be a number of seconds, or None$"),
        ({"timeout": float("nan")}, r"^timeout=nan: must be"),
        ({"cost": lambda x: "long"}, r"^cost gave 'long' for an item: must be a number of seconds from 0$"),
        ({"cost": lambda x: -1.0}, r"^cost gave -1.0 for an item: must be"),
        ({"cost": lambda x: float("nan")}, r"^cost gave nan for an item: must be"),
    ],
)
@pytest.mark.parametrize("many", [1, 100])
def test_a_wish_for_a_map_that_cannot_be_kept_is_refused_in_one_line(
    pool: Pool, wish: dict[str, Any], said: str, many: int
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        pool.map(double, range(many), **wish)
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_are_numbers() -> None:
    two = np.int64(2)
    with Pool(two, retries=two, threads=two, seed=two) as pool:  # type: ignore[arg-type]
        its = pool.submit(double, 1, priority=np.float32(1), retries=two, need=Need(two, two), timeout=np.float32(60), cost=two)  # type: ignore[call-overload, arg-type]
        assert its.result() == 2
        assert list(pool.map(double, [1, 2], buffersize=two, timeout=np.int32(60))) == [2, 4]  # type: ignore[arg-type]
        pool.resize(np.int64(1))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^timeout=nan: must be"):
        pool.submit(double, 1, timeout=np.float32("nan"))


def test_a_key_that_is_a_function_is_the_functions_own(pool: Pool) -> None:
    assert pool.submit(max, [3, 1, 2], key=operator.neg).result() == 1
    assert pool.map(double, [3, 1, 2]).then(max, key=operator.neg).result() == 2
    assert pool.submit(double, 2).then(lambda x, key: key(x), key=operator.neg).result() == -4
    with pytest.raises(UserError, match=r"^key=3: must be text$"):
        pool.submit(max, [1], key=3)  # type: ignore[arg-type]
