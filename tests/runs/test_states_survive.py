"""What methods remember of clients survives kill -9 of an actor and of the coordinator, with the same bits."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from whole import run

from shoal.jobs.catalog import find

JOB = """
import os
import signal
from pathlib import Path

import numpy as np
from torch import nn
from torch.nn.functional import cross_entropy

from shoal import Federated

HERE, FIRST = Path(__file__).parent, os.getpid()
SIGNS = HERE / "coordinator-dies", HERE / "actor-dies"


def data():
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, 120)
    return rng.normal(size=(120, 5)) + np.eye(5)[y], y


def die(sign, chance):
    if sign.exists() and np.random.default_rng().random() < chance:
        sign.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def loss(logits, y):
    if os.getpid() != FIRST:
        die(SIGNS[1], 0.05)
    return cross_entropy(logits, y)


def metric(logits, y):  # the coordinator makes it of the held-out data, once before a run and then once a round
    if (HERE / "run" / "metrics.jsonl").exists() and len((HERE / "run" / "metrics.jsonl").read_text().splitlines()) > 8:
        die(SIGNS[0], 1.0)
    return 1.0


own = {"local_epochs": 1, "clients": 12, "cohort": 4, "rounds": 20, "eval_every": 1, "snapshot_every": 0.05}
job = Federated(lambda: nn.Linear(5, 3), data, loss, metrics={"alive": metric}, **own)
"""


def shoal(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "shoal", *words]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize(("method", "memory"), [("scaffold", 0), ("feddyn", 64)])
def test_clients_states_survive_kill_9_of_an_actor_and_of_the_coordinator(tmp_path: Path, method: str, memory: int) -> None:
    (tmp_path / "job.py").write_text(JOB)
    whole = run(find(f"{tmp_path}/job.py:job").configured({"method": method, "rounds": 20}), 0).sha256
    for sign in ("coordinator-dies", "actor-dies"):
        (tmp_path / sign).touch()
    words = ("job.py", f"method={method}", f"state_memory={memory}", "--run-dir", "run", "--actors", "2")
    killed = shoal(tmp_path, "simulate", *words)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = shoal(tmp_path, "resume", "run", "--json")
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("*-dies"))
    assert json.loads(done.stdout)["weights_sha256"] == whole
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["version"] for row in rows] == [*range(1, 21)]
    assert rows[-1]["contributions"] == 80
