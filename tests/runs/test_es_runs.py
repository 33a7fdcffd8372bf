"""Evolution strategies through the whole machinery: the same bits for any number of actors, and after kill -9."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch import nn
from whole import run

import shoal
from shoal.jobs.catalog import find
from shoal.jobs.reinforcement import Reinforcement
from shoal.protocol.errors import UserError

JOB = """
import os
import signal
from pathlib import Path

from shoal import Reinforcement
from shoal.aggregators.es import ESLearner

SIGN = Path(__file__).parent / "dies"
step = ESLearner.step


def dying(learner):
    if learner.updates == 5 and SIGN.exists():
        SIGN.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return step(learner)


if SIGN.exists():
    ESLearner.step = dying
sizes = dict(clients=3, pairs=3, hidden=(5,), lr=0.1, total_timesteps=6_000, eval_every=4, eval_episodes=2)
job = Reinforcement("CartPole-v1", method="es", snapshot_every=0.0, **sizes)
"""


def test_a_run_has_the_bits_of_the_plain_loop_and_goes_on_to_the_same_after_kill_9(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    whole = run(find(f"{tmp_path}/job.py:job"), 0)
    versions = whole.core.facts.version
    assert versions > 6
    (tmp_path / "dies").touch()
    words = [sys.executable, "-m", "shoal"]
    killed = subprocess.run(
        [*words, "simulate", "job.py", "--run-dir", "run", "--actors", "2"],
        cwd=tmp_path,
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = subprocess.run(
        [*words, "resume", "run", "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["weights_sha256"] == whole.sha256
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["version"] for row in rows] == [*range(1, versions + 1)]
    assert rows[4]["metrics"]["eval/return_mean"] > 0
    assert shoal.evaluate(tmp_path / "run", episodes=3)["return_mean"] > 0


def test_es_refuses_a_policy_of_one_s_own_and_settings_that_it_lacks() -> None:
    with pytest.raises(UserError, match="method=es: perturbs the built-in policy; leave policy out"):
        Reinforcement("CartPole-v1", lambda spaces: nn.Linear(1, 1), method="es").check_parts()
    with pytest.raises(UserError, match="gamma"):
        Reinforcement("CartPole-v1", method="es", gamma=0.9)


def test_box_actions_and_a_policy_s_size_are_served(tmp_path: Path) -> None:
    job = Reinforcement("Pendulum-v1", method="es", hidden=(4,), clients=1, pairs=2, total_timesteps=800)
    made = run(job, 0)
    assert np.isfinite(made.weights.vector()).all()
    assert made.core.facts.version == 1
