"""The case `serve`: which goals it holds, and that a load on a server counts its processes' CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from shoal.benchmarks import serving
from shoal.benchmarks.peers import serving as load
from shoal.benchmarks.peers.beside import POLICY, Beside

FINE = {"failed": 0, "mixed": 0, "refused": 1}


@pytest.mark.parametrize(
    ("http", "zmq", "swaps", "holds"),
    [
        ((100.0, 200.0), (20.0, 40.0), FINE, True),
        ((130.0, 200.0), (20.0, 40.0), FINE, False),  # batching over HTTP saves too little
        ((100.0, 200.0), (30.0, 40.0), FINE, False),
        ((100.0, 200.0), (20.0, 40.0), {**FINE, "mixed": 1}, False),
        ((100.0, 200.0), (20.0, 40.0), {**FINE, "refused": 0}, False),
    ],
)
def test_the_case_holds_if_every_goal_is_reached(
    monkeypatch: pytest.MonkeyPatch, http: tuple[float, float], zmq: tuple[float, float], swaps: Any, holds: bool
) -> None:
    monkeypatch.setenv(POLICY, "off")
    monkeypatch.setattr(serving, "_http", lambda number, batch: http[batch == 1])
    monkeypatch.setattr(serving, "_zmq", lambda number, batch: zmq[batch == 1])
    monkeypatch.setattr(serving, "_swapped", lambda number: swaps)
    found = serving.serve(quick=True)
    assert (found.figure, found.peer, found.holds) == (http[0], None, holds)
    assert found.details["litserve"] == "skipped: --peers off"


@pytest.mark.parametrize(("best", "holds"), [(250.0, True), (150.0, False)])
def test_the_case_is_held_against_the_best_peer(monkeypatch: pytest.MonkeyPatch, best: float, holds: bool) -> None:
    monkeypatch.setenv(POLICY, "off")
    monkeypatch.setattr(serving, "_http", lambda number, batch: 100.0 if batch > 1 else 200.0)
    monkeypatch.setattr(serving, "_zmq", lambda number, batch: 20.0 if batch > 1 else 40.0)
    monkeypatch.setattr(serving, "_swapped", lambda number: FINE)
    monkeypatch.setattr(Beside, "best", lambda self, peer: best if peer == "litserve" else 9_000.0)
    found = serving.serve(quick=True)
    assert (found.peer, found.ratio, found.holds) == (best, 100.0 / best, holds)


def test_a_load_counts_the_cpu_of_a_server_and_of_all_its_processes() -> None:
    inner = "import sys; sum(range(10**7)); print(1, flush=True); sys.stdin.read()"
    outer = (
        "import subprocess, sys; inner = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=subprocess.PIPE); "
        "inner.stdout.readline(); print(1, flush=True); inner.wait()"
    )
    command = [sys.executable, "-c", outer, inner]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "1\n"
        _, below = load.descendants(process.pid)
        assert load.cpu(process.pid) > load.cpu(below) > 0
        process.stdin.close()
    assert process.pid not in load.descendants(os.getpid())
