"""Pools that grow and shrink, and the memory of their calls."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from test_pool import begun, double, own_pid, touch

from shoal.coordinator.deciding.resources import Need
from shoal.protocol.errors import UserError
from shoal.protocol.memory import whole
from shoal.tasks.meter import WIPE
from shoal.tasks.pool import Pool
from shoal.tasks.weighing import Held, Weigher

MB = 10**6


def test_a_call_that_uses_more_than_twice_its_word_is_told_once_with_the_number_to_write() -> None:
    used = {1: 90 * MB, 2: 250 * MB, 3: 900 * MB}
    weigher = Weigher(lambda: (50, 100), used.__getitem__)
    held = [Held(1, "small", 50 * MB), Held(2, "fit", 100 * MB), Held(3, "unbounded", 0)]
    said = 'fit uses 250 MB of memory, and its need says 100 MB: write need=shoal.Need(memory="275M")'
    assert weigher.look(held) == [said]
    assert (weigher.look(held), weigher.short) == ([], "")
    assert [weigher.due(now) for now in (5.0, 5.5, 6.0, 6.9, 7.1)] == [True, False, True, False, True]


def test_with_hardly_any_memory_left_no_call_begins_and_that_is_said(tmp_path: Path) -> None:
    free = [1]
    with Pool(1) as pool:
        pool._running.weigher.free = lambda: (free[0], 100)
        for _ in range(3):
            pool._running.weigher._at = 0.0
            waits = pool.submit(double, 2)
            if not waits.done():
                break
        for _ in range(1_000):
            if "no call begins, because" in pool.status():
                break
            threading.Event().wait(0.01)
        assert "of memory are left: under 5%" in pool.status()
        later = pool.submit(touch, str(tmp_path / "later"))
        assert not (tmp_path / "later").exists()
        free[0] = 50
        assert later.result(60) > 0
        assert waits.result() == 4


def test_the_memory_in_all_is_the_machines_or_a_cgroups(tmp_path: Path) -> None:
    assert 0 < whole() <= psutil.virtual_memory().total
    (tmp_path / "self").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\n")
    (tmp_path / "self" / "cgroup").write_text("0::/a/b\n")
    (tmp_path / "cgroup" / "a" / "b").mkdir(parents=True)
    (tmp_path / "cgroup" / "a" / "memory.max").write_text("4096\n")
    (tmp_path / "cgroup" / "a" / "b" / "memory.max").write_text("max\n")
    assert whole(tmp_path, tmp_path / "cgroup") == 4_096
    assert whole(tmp_path, tmp_path / "none") == 1_024_000


def test_a_pool_grows_and_shrinks_and_loses_no_call(tmp_path: Path) -> None:
    with Pool(1) as pool:
        pool.resize(3)
        futures = [pool.submit(touch, str(tmp_path / "three"), 0.3) for _ in range(9)]
        assert len({future.result() for future in futures}) == 3
        busy = pool.submit(touch, str(tmp_path / "busy"), 0.5)
        begun(tmp_path / "busy")
        pool.resize(1)
        rest = [pool.submit(own_pid) for _ in range(20)]
        assert {future.result() for future in rest} == {busy.result()}
        pool.resize(2)
        assert len({one.result() for one in [pool.submit(touch, str(tmp_path / "two"), 0.3) for _ in range(6)]}) == 2
        with pytest.raises(UserError, match=r"resize.0.: must be a whole number from 1"):
            pool.resize(0)


def test_a_map_keeps_as_many_bytes_of_results_as_it_is_told() -> None:
    with Pool(1) as pool:
        given = pool.map(bytes, [100_000] * 30, keep="250K")
        for _ in range(1_000):
            if "until results that are there are taken" in pool.status():
                break
            threading.Event().wait(0.01)
        assert "until results that are there are taken" in pool.status()
        assert sum(map(len, given)) == 3_000_000
        for wrong in (0, "lots", -1):
            with pytest.raises(UserError, match=r"keep=.*must be bytes above 0"):
                pool.map(double, [1], keep=wrong)
        assert Need(memory="2G").nbytes == 2 * 10**9


WATCHED = """
import threading, shoal
from shoal.tasks import meter
meter.AFTER = 0.0
def nap(seconds):
    threading.Event().wait(seconds)
with shoal.Pool(1) as pool:
    list(pool.map(nap, [0.3] * 5))
print("done")
"""


def test_only_a_terminal_is_told_how_far_a_pool_is() -> None:
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        done = subprocess.run([sys.executable, "-c", WATCHED], stdout=subprocess.PIPE, stderr=theirs, check=True)
        os.close(theirs)
        said = os.read(screen.fileno(), 65_536).decode()
    assert done.stdout == b"done\n"
    assert " of 5 calls in " in said
    assert said.endswith(WIPE)
    quiet = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, check=True)
    assert (quiet.stdout, quiet.stderr) == (b"done\n", b"")


POOR = """
import os, resource, signal, sys, threading
from concurrent.futures import wait
import numpy as np, shoal
from shoal import UserError
LOW = 60
def limited(many):
    resource.setrlimit(resource.RLIMIT_NOFILE, (many, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
low = [os.dup(1) for _ in range(LOW)]
limited(200)
def pid(_=None):
    return os.getpid()
def ones(x):
    return np.full(100_000, float(x))
def total(x):
    return float(np.sum(x))
def starve():
    held = []
    try:
        while True:
            held.append(os.dup(1))
    except OSError:
        return held
def refused(act):
    try:
        return f"not refused: {act()}"
    except UserError as why:
        return str(why)
with shoal.Pool(2) as pool:
    first = {pool.submit(pid).result() for _ in range(40)}
    large = pool.submit(ones, 2)
    wait([large])
    held = starve()
    print("small", pool.submit(total, [1, 2]).result(), sum(pool.map(total, [[x] for x in range(1_000)])))
    print("result", pool.submit(ones, 3).result()[0])
    print("later", large.result()[0])
    held += starve()
    print("status", refused(pool.status))
    os.close(held.pop())
    pool.status()
    held += starve()
    print("argument", refused(lambda: pool.submit(total, np.ones(100_000)).result()))
    print("pool", refused(lambda: shoal.Pool(1)))
    pids = [pool.submit(pid).result()]
    os.kill(pids[0], signal.SIGKILL)
    print("other", pool.submit(total, [7]).result())
    limited(LOW - 10)  # what the lines of processes leave free is no use either
    for line in [one for one in pool.status().splitlines() if one.startswith("actor-")]:
        os.kill(int(line.split(":")[0].split("-")[1]), signal.SIGKILL)
    waiting = []
    for _ in range(1_000):
        try:
            waiting.append(pool.submit(pid))
        except UserError as why:
            print("nobody", why)
            break
        threading.Event().wait(0.02)
    print("why", [one for one in pool.status().splitlines() if "descriptors" in one])
    limited(200)
    for one in held:
        os.close(one)
    print("again", all(one.result() not in first for one in waiting), sum(pool.map(total, [[x] for x in range(1_000)])))
    print("large", large.result()[0], pool.submit(ones, 4).result()[0])
    kept = list(pool.map(ones, range(300)))
    print("kept", sum(one[-1] for one in kept), len(os.listdir("/proc/self/fd")) < 200)
"""


def test_a_program_that_holds_every_descriptor_is_refused_in_words_and_its_pool_goes_on() -> None:
    done = subprocess.run([sys.executable, "-c", POOR], capture_output=True, text=True, timeout=120, check=False)
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert done.returncode == 0, done.stderr
    limit = "this program holds all descriptors that it may have: close files, or raise the limit (ulimit -n)"
    assert said["small"] == "3.0 499500.0"
    assert said["result"] == "3.0"
    assert said["later"] == "2.0"
    assert said["status"] == limit
    assert said["argument"].startswith("the arguments of total cannot be sent: there is no memory for them, or no descriptor")
    assert said["pool"] == f"a pool cannot be made: {limit}"
    assert said["other"] == "7.0"
    assert said["nobody"] == f"no process can begin a call: {limit}"
    assert limit in said["why"]
    assert said["again"] == "True 499500.0"
    assert said["large"] == "2.0 4.0"
    assert said["kept"] == "44850.0 True"
