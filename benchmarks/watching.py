"""The page of `shoal watch`: its CPU while watched, its size, and what it takes from the run that is watched.

The one idea: the page is watched by a client that reads its stream as a browser does, in the process that measures, so the CPU
is the page's process alone; and the run is watched and not watched by turns, so that other load meets both.
"""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from shoal.benchmarks.case import Finding
from shoal.coordinator.deciding.roll import COLUMNS
from shoal.runs.rundir import Config, RunDir, replaced
from shoal.watching.app import static

SHARE, SIZE = 3.0, 200_000  # % of a core, and bytes
ACTORS, HERTZ = 100, 2.0
SURE = 0.05  # standard error of the ratio of CPU a contribution above which nothing is said
WINDOW = 1.5  # seconds that the run is watched, or not


def watch(quick: bool) -> Finding:
    """Measures the CPU of a page about 100 actors at 2 Hz, its bytes, and a run's contributions/s with and without it."""
    with tempfile.TemporaryDirectory() as folder:
        cpu, read, rss = _cpu(Path(folder) / "run", 10.0 if quick else 60.0)
        watched, alone = _windows(Path(folder), 6 if quick else 60)
    size = sum(map(len, static().values()))
    ratio, error = _ratio([one.rate for one in watched], [one.rate for one in alone])
    cost, cost_error = _ratio([one.cpu for one in watched], [one.cpu for one in alone])
    small = cpu <= SHARE and size <= SIZE
    return Finding(
        figure=cpu,
        unit=f"% of a core for a page about {ACTORS} actors at {HERTZ:g} Hz",
        goal=SHARE,
        ratio=ratio,
        holds=(small and ratio >= 1 - 2 * error and cost <= 1 + 2 * cost_error) if cost_error < SURE or not small else None,
        asked="at most 3 % of a core; contributions/s unchanged within noise; a page of at most 200 KB",
        details={
            "page_bytes": size,
            "stream_bytes_per_second": read,
            "resident_mb": rss / 1e6,
            "contributions_per_second_watched": statistics.median(one.rate for one in watched),
            "contributions_per_second_alone": statistics.median(one.rate for one in alone),
            "standard_error_of_ratio": error,
            "ratio_of_cpu_per_contribution": cost,
            "standard_error_of_that": cost_error,
            "pairs_of_windows": len(watched),
        },
    )


class Window(NamedTuple):
    """A time in which a run was watched, or not. rate: contributions/s. cpu: seconds of the run's processes a contribution."""

    rate: float
    cpu: float


def _ratio(these: list[float], those: list[float]) -> tuple[float, float]:
    """The median ratio of neighbouring windows, and its standard error."""
    ratios = [one / other for one, other in zip(these, those, strict=True)]
    return statistics.median(ratios), 1.25 * statistics.stdev(ratios) / len(ratios) ** 0.5


def _cpu(folder: Path, seconds: float) -> tuple[float, float, int]:
    """(% of a core, bytes a second of the stream, resident bytes) of a page that is watched while a run makes HERTZ versions a
    second with ACTORS actors."""
    folder.mkdir()
    run = RunDir(folder)
    run.write_config(Config("digits"))
    _tell(run, 1)
    with _page(folder) as (port, process), _reader(port) as read:
        over = threading.Event()
        over.wait(2.0)
        before, began, bytes_before, version = process.cpu_times(), time.perf_counter(), read[0], 1
        while (now := time.perf_counter() - began) < seconds:
            version += 1
            _tell(run, version)
            over.wait(max(0.0, (version - 1) / HERTZ - now))
        after, took = process.cpu_times(), time.perf_counter() - began
        cpu = after.user + after.system - before.user - before.system
        return float(100 * cpu / took), (read[0] - bytes_before) / took, process.memory_info().rss


def _tell(run: RunDir, version: int) -> None:
    """The rows of a run of ACTORS actors at a step; its status whenever it steps, which is more often than a run does it."""
    metrics = dict.fromkeys(("loss", "accuracy", "lag_min", "lag_mean", "lag_max", "examples", "update_norm"), version / 7)
    row = {"version": version, "seconds": version / HERTZ, "steps": 0, "contributions": version, "metrics": metrics}
    with run.metrics_file.open("a") as file:
        file.write(json.dumps(row) + "\n")
    rows = [[at, f"box-{at}", "", at, "working", version % 3, 2, 0.25, 0, 0.1] for at in range(ACTORS)]
    now = time.time()
    status = {"state": "running", "written": now, "stepped": now, "version": version, "goal": "100,000 rounds", "done": 0.5}
    roll = {"columns": COLUMNS, "rows": rows, "tasks": {"out": 200, "accepted": version}, "lags": [[0, 600], [1, 400]]}
    replaced(run.status_file, json.dumps({**status, "actors": ACTORS, "waiting_for": [], "metrics": metrics, "roll": roll}))


@contextmanager
def _page(folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """A page about a folder, in a process of its own: its port, and the process."""
    words = [sys.executable, "-m", "shoal", "watch", str(folder), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as page:
        try:
            assert page.stdout is not None
            yield int(page.stdout.readline().split("127.0.0.1:")[1].partition("/")[0]), psutil.Process(page.pid)
        finally:
            page.terminate()


@contextmanager
def _reader(port: int) -> Iterator[list[int]]:
    """A client that reads the stream in a thread of this process; gives the bytes that it has read."""
    connection, read = http.client.HTTPConnection("127.0.0.1", port, timeout=30), [0]
    connection.request("GET", "/events")
    stream = connection.getresponse()

    def live() -> None:
        with suppress(OSError, ValueError, http.client.HTTPException, AttributeError):  # the page ends, or the block does
            while line := stream.readline():
                read[0] += len(line)

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    try:
        yield read
    finally:
        if connection.sock is not None:
            connection.sock.shutdown(2)
        thread.join(5)
        connection.close()


def _windows(folder: Path, windows: int) -> tuple[list[Window], list[Window]]:
    """Windows in which a run of two actors is watched, and windows between them."""
    path = folder / "watched"
    words = [sys.executable, "-m", "shoal", "simulate", "digits", "rounds=1000000", "eval_every=0", "snapshot_every=1000"]
    command = [*words, "--actors", "2", "--quiet", "--run-dir", str(path)]
    found: tuple[list[Window], list[Window]] = ([], [])
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        try:
            waited = threading.Event()
            for _ in range(600):
                if _newest(path) is not None:
                    break
                waited.wait(0.1)
            ours = psutil.Process(run.pid)
            with _page(path) as (port, process):
                waited.wait(2.0)
                for window in range(2 * windows):
                    if window % 2 == 0:
                        process.resume()
                        with _reader(port):
                            found[0].append(_window(path, ours, waited))
                    else:
                        process.suspend()  # nothing of the page takes part
                        found[1].append(_window(path, ours, waited))
                process.resume()
        finally:
            run.kill()
    return found


def _window(path: Path, run: psutil.Process, waited: threading.Event) -> Window:
    waited.wait(0.2)
    first, before, began = _newest(path), _spent(run), time.perf_counter()
    waited.wait(WINDOW)
    last, after, took = _newest(path), _spent(run), time.perf_counter() - began
    assert first is not None
    assert last is not None
    many = max(1, last["contributions"] - first["contributions"])
    return Window(many / took, (after - before) / many)


def _spent(run: psutil.Process) -> float:
    """Seconds of CPU of a run's processes."""
    return sum(one.cpu_times().user + one.cpu_times().system for one in [run, *run.children(recursive=True)])


def _newest(path: Path) -> dict[str, Any] | None:
    """The last whole row of a run's history."""
    with suppress(OSError, ValueError, IndexError), (path / "metrics.jsonl").open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 8192))
        found: dict[str, Any] = json.loads(file.read().rpartition(b"\n")[0].rpartition(b"\n")[2])
        return found
    return None
