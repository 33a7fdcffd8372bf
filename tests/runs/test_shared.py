"""Arrays that all calls of a pool write into."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.shared import Segment
from shoal.tasks.common import Shared
from shoal.tasks.pool import Pool

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "hogwild.py"


def write(shared: Shared, at: int) -> int:
    shared.w[at] += at
    shared["n"][at % 2, at // 2] = at
    return os.getpid()


def fill(shared: Shared, first: int, last: int) -> None:
    for at in range(first, last):
        shared.w[at] = at


def test_what_calls_write_is_here_and_in_other_calls() -> None:
    shared = Shared({"w": np.arange(1_000.0), "n": np.zeros((2, 5), "i2"), "empty": np.zeros((0, 4))})
    with Pool(2) as pool:
        assert os.getpid() not in set(pool.map(write, [shared] * 10, range(10)))
        assert shared.w[:11].tolist() == [*range(0, 20, 2), 10]
        assert shared.n.tolist() == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
        shared.w[:] = 0
        halves = [pool.submit(fill, shared, *half) for half in ((0, 500), (500, 1_000))]
        assert [half.result() for half in halves] == [None, None]
        assert pool.submit(lambda its: float(its.w.sum()), shared).result() == 499_500
    assert np.array_equal(shared.w, np.arange(1_000.0))
    assert (list(shared), len(shared), shared.empty.shape) == (["w", "n", "empty"], 3, (0, 4))


def test_an_array_outlives_the_object_and_the_call_says_that_the_object_is_gone() -> None:
    shared = Shared({"w": np.arange(4.0)})
    w, form = shared.w, shared.__reduce__()
    w[1] = 7.0
    del shared
    gc.collect()
    assert w.tolist() == [0, 7, 2, 3]
    with pytest.raises(UserError, match="its program holds it no longer"):
        form[0](*form[1])


def test_other_memory_cannot_be_opened_to_be_written() -> None:
    segment = Segment.create(4_096)
    with pytest.raises(ProtocolError, match="cannot be opened"):
        Segment.open(segment.handle, common=True)
    segment.close()


def test_what_cannot_be_shared_is_one_line() -> None:
    odd: Any
    for odd, words in [
        ({}, "expected arrays by name"),
        ([1], "expected arrays by name"),
        ({1: np.zeros(1)}, "expected arrays by name"),
        ({"w": np.array([None])}, "'w' has dtype object"),
    ]:
        with pytest.raises(UserError, match=words):
            Shared(odd)
    shared = Shared({"w": np.zeros(2)})
    with pytest.raises(AttributeError, match=r"shared.w\[...\] = ..."):
        shared.w = np.ones(2)
    with pytest.raises(AttributeError, match="no array 'v'"):
        _ = shared.v


def test_hogwild_learns_what_one_process_learns(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, EXAMPLE, "--quick"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    losses = {name: float(loss) for name, loss in re.findall(r"^(\S+) +loss ([0-9.]+)", done.stdout, re.MULTILINE)}
    assert list(losses) == ["serial", "Hogwild!", "locked"]
    assert losses["serial"] < 0.2  # 0.69 is a guess
    assert abs(losses["Hogwild!"] / losses["serial"] - 1) < 0.05
    assert (tmp_path / "hogwild.png").stat().st_size > 5_000
