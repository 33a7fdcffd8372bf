"""One call on several devices: real torchruns with ranks on CPU, which are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

import shoal
from shoal.protocol.errors import GangError, UserError
from shoal.tasks.pool import Pool

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ddp.py"
GANG = shoal.Need(cores=2, gang=True)
RANKS = """
import os, sys, threading
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()} {os.environ['RANK']} {os.environ['OMP_NUM_THREADS']}\\n")
if sys.argv[2:] == ["ends"] or (sys.argv[2:] == ["once"] and os.path.exists(sys.argv[1] + ".again")):
    print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"])
    sys.exit()
if sys.argv[2:] == ["fails"]:
    sys.exit("no luck")
threading.Event().wait(3_600)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "ranks.py").write_text(RANKS)
    return tmp_path / "ranks.py"


def begun(path: Path, times: int = 2) -> list[int]:
    """The process ids of so many ranks, once they have begun."""
    for _ in range(3_000):
        if path.exists() and len(lines := path.read_text().splitlines()) >= times:
            return [int(line.split()[0]) for line in lines]
        threading.Event().wait(0.02)
    raise AssertionError(f"{times} ranks did not begin")


def gone(pids: list[int]) -> bool:
    for _ in range(500):
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
            return True
        threading.Event().wait(0.02)
    return False


def test_needs_of_gangs_are_whole_and_count_as_what_they_are() -> None:
    assert (GANG.ranks, GANG.threads, shoal.Need(cores=8, gpus=2, gang=True).ranks) == (2, 1, 2)
    assert shoal.Need(cores=8, gpus=2, gang=True).threads == 4
    for wrong in ({"cores": 1.5}, {"cores": 0}, {"gpus": 0.5}):
        with pytest.raises(UserError, match="gang=True"):
            shoal.Need(**wrong, gang=True)  # type: ignore[arg-type]
    with Pool(1) as pool:
        with pytest.raises(UserError, match="is for a call of a pool with a gang"):
            pool.submit(shoal.torchrun, "x.py").result()
        with pytest.raises(FileNotFoundError, match=r"there is no x\.py in"):
            pool.submit(shoal.torchrun, "x.py", need=shoal.Need(cores=1, gang=True)).result()


def test_a_rank_that_is_killed_fails_the_gang_once_and_it_is_tried_again(script: Path, tmp_path: Path) -> None:
    with Pool(2) as pool:
        future = pool.submit(shoal.torchrun, script, tmp_path / "log", "once", need=GANG)
        one, other = begun(tmp_path / "log")
        (tmp_path / "log.again").touch()
        os.kill(one, signal.SIGKILL)
        assert future.result(120)["code"] == 0
        assert {"rank 0 of 2", "rank 1 of 2"} <= set(future.result()["log"].splitlines())
        rows = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
        assert [len(rows), {row[2] for row in rows}] == [4, {"1"}]
        assert gone([one, other])


@pytest.mark.slow
def test_a_gang_that_fails_again_and_again_tells_its_code_and_log(script: Path, tmp_path: Path) -> None:
    with Pool(2) as pool:
        with pytest.raises(GangError, match="no luck") as caught:
            pool.submit(shoal.torchrun, script, tmp_path / "log", "fails", need=GANG, retries=0).result()
        assert caught.value.code == 1
        assert len(begun(tmp_path / "log")) == 2


@pytest.mark.slow
def test_to_kill_the_future_or_the_call_ends_every_rank(script: Path, tmp_path: Path) -> None:
    with Pool(2) as pool:
        future = pool.submit(shoal.torchrun, script, tmp_path / "log", need=GANG)
        first = begun(tmp_path / "log")
        family = [one.pid for one in psutil.Process(first[0]).parents() if one.pid != os.getpid()]
        torchrun = family[0]
        assert future.kill()
        assert gone([*first, torchrun])
        (tmp_path / "log.again").touch()
        future = pool.submit(shoal.torchrun, script, tmp_path / "other", need=GANG, retries=0)
        second = begun(tmp_path / "other")
        os.kill(psutil.Process(psutil.Process(second[0]).ppid()).ppid(), signal.SIGKILL)  # the call's process
        with pytest.raises(shoal.WorkerLost):
            future.result(60)
        assert gone(second)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["program", "torchrun"])
def test_whatever_is_killed_no_rank_is_left(script: Path, tmp_path: Path, victim: str) -> None:
    program = (
        "import sys, shoal\nshoal.Pool(2).submit(shoal.torchrun, *sys.argv[1:], need=shoal.Need(cores=2, gang=True)).result()"
    )
    run = subprocess.Popen([sys.executable, "-c", program, script, tmp_path / "log"])
    ranks = begun(tmp_path / "log")
    torchrun = psutil.Process(ranks[0]).ppid()
    os.kill(run.pid if victim == "program" else torchrun, signal.SIGKILL)
    assert gone(ranks)
    run.kill()
    run.wait()
    assert gone([pid for pid in begun(tmp_path / "log") if pid not in ranks])


@pytest.mark.slow
def test_ddp_with_two_ranks_equals_one_process_at_the_same_global_batch(tmp_path: Path) -> None:
    with Pool(2) as pool:
        two = pool.submit(shoal.torchrun, EXAMPLE, tmp_path / "two.npz", need=GANG)
        assert "rank 1 of 2: loss" in two.result()["log"]
    subprocess.run([sys.executable, EXAMPLE, tmp_path / "one.npz"], check=True, capture_output=True)
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "two.npz") as other:
        assert sorted(one) == sorted(other)
        assert all(np.allclose(one[name], other[name], rtol=1e-4, atol=1e-6) for name in one)
