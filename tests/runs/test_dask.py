"""dask's graphs in a pool: the values of dask's own schedulers, whatever happens to processes."""

from __future__ import annotations

import os
import signal
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import dask
import dask.array as da
import numpy as np
import psutil
import pytest
from dask.callbacks import Callback

import shoal
from shoal.protocol.errors import UserError
from shoal.tasks.futures import RemoteTraceback
from shoal.tasks.pool import Pool


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(2) as its:
        yield its


def test_the_mean_of_a_hundred_million_numbers_survives_a_kill(pool: Pool) -> None:
    mean = da.random.default_rng(0).random(100_000_000, chunks=10_000_000).mean()
    killed = []

    def kill(key: Any, value: Any, graph: Any, state: Any, worker: Any) -> None:
        if not killed:
            leaves = [one.pid for one in psutil.Process().children(recursive=True) if not one.children()]
            killed.append(leaves[-1])
            os.kill(leaves[-1], signal.SIGKILL)

    with dask.config.set(scheduler=shoal.dask_get(pool)), Callback(posttask=kill):
        found = mean.compute()
    assert killed
    with ThreadPoolExecutor(2) as threads:  # dask's own would stay, and no process can be copied beside threads
        assert found == mean.compute(scheduler="threads", pool=threads)


def test_arrays_have_the_bits_of_the_threaded_scheduler(pool: Pool) -> None:
    x = da.random.default_rng(1).random((400, 300), chunks=(100, 150))
    wanted = [(x @ x.T).sum(0), x[::3].T.std(1), da.linalg.svd(x.rechunk((100, 300)))[1]]
    with dask.config.set(scheduler=shoal.dask_get(pool)):
        found = dask.compute(*wanted)
        kept = x.persist()
        assert (kept.compute() == x.compute(scheduler="sync")).all()
    for one, other in zip(found, dask.compute(*wanted, scheduler="sync"), strict=True):
        assert (one == other).all()


def test_graphs_may_be_tuples_and_keys_may_be_nested(pool: Pool) -> None:
    get = shoal.dask_get(pool)
    graph = {"a": 1, ("b", 0): (lambda x: x + 1, "a"), "c": (sum, ["a", ("b", 0)]), "d": "c"}
    assert get(graph, "c") == 3
    assert get(graph, ["d", [["a"], ("b", 0)]]) == (3, ((1,), 2))
    assert dask.delayed(sum)([dask.delayed(abs)(-x) for x in range(4)]).compute(scheduler=get, num_workers=1) == 6


def fails(x: int) -> int:
    raise KeyError(x)


def test_an_error_names_the_key_of_its_task(pool: Pool) -> None:
    with pytest.raises(KeyError, match="7") as raised:
        shoal.dask_get(pool)({"a": 7, ("bad", 3): (fails, "a")}, ("bad", 3))
    assert raised.value.__notes__ == ["in the task ('bad', 3) of a dask graph"]
    assert isinstance(raised.value.__cause__, RemoteTraceback)


class Chunk:
    """A result that is counted as long as it is there; its numbers are put into shared memory when a second task has them."""

    alive: ClassVar[weakref.WeakSet[Chunk]] = weakref.WeakSet()

    def __init__(self, size: int) -> None:
        self.data = np.ones(size)

    def __reduce__(self) -> Any:
        return chunk, (len(self.data),)


def chunk(size: int) -> Chunk:
    made = Chunk(size)
    Chunk.alive.add(made)
    return made


def joined(one: Chunk, _: object = None) -> int:
    return len(one.data)


def test_a_result_is_let_go_when_nobody_needs_it_any_more(pool: Pool) -> None:
    graph: dict[Any, Any] = {}
    for at in range(40):
        graph["chunk", at] = (chunk, 10_000)
        graph["size", at] = (joined, ("chunk", at))
        graph["twice", at] = (joined, ("chunk", at), ("size", at))
    graph["all"] = (sum, [("twice", at) for at in range(40)])
    most = 0

    def look(key: Any, value: Any, *others: Any) -> None:
        nonlocal most
        most = max(most, len(Chunk.alive))

    with Callback(posttask=look):
        assert shoal.dask_get(pool)(graph, "all") == 400_000
    assert 0 < most <= 8


def test_tables_of_pandas_are_grouped(pool: Pool) -> None:
    pytest.importorskip("pyarrow")  # which dask's tables need
    import dask.dataframe as dd
    import pandas as pd

    table = dd.from_pandas(pd.DataFrame({"a": range(1_000), "b": [at % 7 for at in range(1_000)]}), npartitions=4)
    with dask.config.set(scheduler=shoal.dask_get(pool)):
        assert table.groupby("b").a.sum().compute().sum() == sum(range(1_000))


def test_what_is_no_pool_is_refused() -> None:
    with pytest.raises(UserError, match=r"expected a shoal\.Pool"):
        shoal.dask_get("pool")  # type: ignore[arg-type]


def test_nothing_is_left_in_dev_shm(pool: Pool) -> None:
    before = set(Path("/dev/shm").iterdir())
    shoal.dask_get(pool)({"a": (np.ones, 1_000_000), "b": (np.sum, "a"), "c": (np.mean, "a")}, ["b", "c"])
    assert set(Path("/dev/shm").iterdir()) <= before
