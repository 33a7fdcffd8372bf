"""Loaders of real processes: the same batches whoever makes them, and nothing left when a `for` ends."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

import shoal
from shoal.faults.patient import ran as finished
from shoal.protocol.errors import UserError, WorkerLost
from shoal.tasks.loader import Loader

ROWS = np.random.default_rng(0).normal(size=(300, 24, 24)).astype("f4")
DATA = (ROWS, np.arange(300))


def noisy(example: Any, rng: np.random.Generator) -> Any:
    rows, label = example
    return rows + rng.normal(size=rows.shape).astype("f4"), label


def digest(batches: Iterable[tuple[int, Any]], before: Iterable[bytes] = ()) -> str:
    return hashlib.sha256(b"".join([*before, *raw(batches)])).hexdigest()


def raw(batches: Iterable[tuple[int, Any]]) -> list[bytes]:
    return [b"%d" % step + b"".join(array.tobytes() for array in batch) for step, batch in batches]


def loader(actors: int, transform: Any = noisy, **how: Any) -> Loader:
    return Loader(DATA, transform, **{"batch_size": 64, "actors": actors, "epochs": 3, **how})  # 147 KB: in shared memory


@pytest.fixture(scope="module")
def expected() -> str:
    return digest(loader(0))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Any:
    yield
    assert psutil.Process().children(recursive=True) == []


@pytest.mark.parametrize("actors", [1, 4])
def test_the_batches_are_the_same_for_any_number_of_actors(actors: int, expected: str) -> None:
    assert digest(loader(actors)) == expected
    assert digest(loader(actors, prefetch=1)) == expected


def test_a_worker_that_is_killed_costs_no_batch(expected: str, tmp_path: Path) -> None:
    def killed(example: Any, rng: np.random.Generator) -> Any:
        if example[1] % 100 == 7:
            try:
                (tmp_path / str(example[1])).touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return noisy(example, rng)

    assert digest(loader(2, killed)) == expected
    assert len(list(tmp_path.iterdir())) == 3


def test_processes_that_die_while_they_make_nothing_are_replaced_as_long_as_batches_come(expected: str) -> None:
    taken = []
    for step, batch in loader(1, prefetch=1):
        taken.append((step, batch))
        if step < 8:  # a pool ends at the fourth
            for one in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if not one.children():
                        one.kill()
    assert digest([], raw(taken)) == expected


@pytest.mark.parametrize("at", [0, 6, 13])
def test_stop_and_resume_at_any_batch_gives_the_same_batches(at: int, expected: str) -> None:
    begun, taken = loader(2), []
    for step, batch in begun:
        taken.append((step, batch))
        if step == at:
            break
    assert psutil.Process().children(recursive=True) == []  # with `taken` and its views still here
    assert digest(loader(1, start=begun.state()), raw(taken)) == expected


def test_a_poison_example_is_named() -> None:
    def poison(example: Any) -> Any:
        if example[1] == 111:
            os._exit(3)
        return example

    with pytest.raises(WorkerLost, match=r"^example 111, in batch \d of epoch 0: prepare ended its process 3 times"):
        list(loader(2, poison))


def test_what_the_user_s_code_raises_comes_with_the_example_and_the_traceback_there() -> None:
    def fails(example: Any) -> Any:
        return {}[example[1]] if example[1] == 42 else example

    its = loader(2, fails)
    with pytest.raises(KeyError, match="42") as caught:
        list(its)
    assert caught.value.__notes__[0].startswith("example 42, in batch ")
    assert "return {}[example[1]]" in str(caught.value.__cause__)
    with pytest.raises(SystemExit) as left:
        list(Loader(range(4), sys.exit, batch_size=2, actors=1, shuffle=False))
    assert left.value.__notes__ == ["example 0, in batch 0 of epoch 0"]
    with pytest.raises(UserError, match=r"^example 1: its part \['lock'\] cannot travel"):
        list(Loader(iter([[1, {"lock": threading.Lock()}]]), actors=1, shuffle=False))
    with pytest.raises(UserError, match=r"^examples 0 and 1 cannot be stacked: shapes \(1,\) and \(2,\)"):
        list(Loader([np.zeros(1), np.zeros(2)], actors=1, shuffle=False))


def test_batches_outlive_the_loader_and_are_torch_s_without_a_copy() -> None:
    its = iter(loader(1))
    _, (rows, _) = next(its)
    before, tensor = rows.copy(), torch.from_numpy(rows)
    view = rows[3, 2]
    its.close()  # type: ignore[attr-defined]
    del its
    tensor[3, 2] += 1.0
    assert np.array_equal(view, before[3, 2] + 1.0)


def test_memory_is_bounded_and_given_back() -> None:
    process, seen = psutil.Process(), []
    shm = set(os.listdir("/dev/shm"))
    big = Loader(np.zeros((64, 1 << 18), "u1"), batch_size=8, actors=2, epochs=100)  # 2 MB each
    for step, _ in big:
        if step % 200 == 100:
            children = process.children(recursive=True)
            seen.append((process.num_fds(), len(process.memory_maps(grouped=False)), max(one.num_fds() for one in children)))
    most = [max(column) - min(column) for column in zip(*seen, strict=True)]
    assert len(seen) == 4
    assert max(most) < 50  # a batch that leaves one behind leaves 600
    assert set(os.listdir("/dev/shm")) <= shm


def test_shards_travel_and_come_back_as_batches() -> None:
    shards = [ROWS[:100], ROWS[100:130], ROWS[130:]]
    found = [[(step, batch.tobytes()) for step, batch in Loader(iter(shards), actors=n, batch_size=64)] for n in (0, 2)]
    assert found[0] == found[1]
    assert len(found[0]) == 5


@pytest.mark.parametrize("ending", ["break", "raise", "held", "interrupt"])
def test_no_process_is_left_however_a_for_ends(ending: str, tmp_path: Path) -> None:
    program = f"""
import os, signal, threading, shoal, sys

def slow(example):
    threading.Event().wait(0.0 if example < 8 else 600.0)
    return example

def main():
    for step, batch in shoal.Loader(range(100), slow, batch_size=4, actors=2, shuffle=False):
        if step == 1:
            if {ending!r} == "break":
                break
            if {ending!r} == "raise":
                raise KeyError(step)
            if {ending!r} == "interrupt":
                os.kill(os.getpid(), signal.SIGINT)

if {ending!r} == "held":
    its = iter(shoal.Loader(range(100), slow, batch_size=4, actors=2, shuffle=False))
    next(its)
    del its
else:
    try:
        main()
    except (KeyError, KeyboardInterrupt):
        pass
import psutil
print(psutil.Process().children(recursive=True))
"""
    (tmp_path / "shown.py").write_text(program)
    done = finished([sys.executable, "shown.py"], tmp_path)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_state_that_is_no_state_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^state is 5: expected"):
        Loader([1, 2], start=5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"must be a whole number from -9223372036854775808 to 2\*\*63 - 1$"):
        Loader([1, 2], seed=2**80)


def test_shared_memory_of_what_is_no_array_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^Shared: 'w' is no array \(") as caught:
        shoal.Shared({"w": [[1], [1, 2]]})
    assert "\n" not in str(caught.value)
