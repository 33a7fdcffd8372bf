"""A run whose weights are no numbers any more ends, with the last version that was."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shoal
from shoal import Bundle, Federated, Work
from shoal.commands.cli import main
from shoal.coordinator.keeping.store import Snapshot
from shoal.protocol.errors import UserError

JOB = """
import numpy as np
from shoal import Bundle, Federated, Work


class Growing:
    def run(self, weights, client, task):
        return Work(Bundle.pack({"slope": np.full(3, 1e8)}, weights.layout), totals={"loss": (2.0, 1.0)})


settings = {"clients": 2, "cohort": 2, "rounds": 9, "server_lr": 1.5e30}
job = Federated(worker=Growing, weights=lambda: {"slope": np.zeros(3, np.float32)}, **settings)
"""


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(JOB)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], r"is not finite: 'slope' holds NaN or an infinity \(loss 2, update_norm 2.598e\+38\)"),
        (["method=fedbuff", "buffer=2"], "is not finite: 'slope' holds NaN or an infinity"),
        (["deterministic=false"], "is not finite: 'slope' holds NaN or an infinity"),
        (["compress_weights=bfloat16"], "cannot be told: NaN or an infinity in the float32 entries"),
    ],
)
def test_weights_that_overflow_end_the_run_with_one_line(
    words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "mine.py:job", *words, "--actors", "0", "--run-dir", "run", "--quiet"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(rf"shoal: (compress_weights=bfloat16: )?version 3 {why}", last)
    assert all(np.isfinite(array).all() for array in shoal.load("run").weights.values())
    assert shoal.load("run").snapshot().version < 3


class Still:
    def run(self, weights: Bundle, client: int, task: Any) -> Work:
        return Work(Bundle.zeros(weights.layout) if task.counts else None, totals={"loss": (1.0, 1.0)})


def test_weights_that_are_no_numbers_are_not_evaluated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Federated(worker=Still, weights=lambda: {"slope": np.zeros(3, np.float32)}, clients=2, cohort=2, rounds=1)
    run = shoal.run(job, actors=0)
    assert shoal.evaluate(run)["loss"] == 1
    broken = Snapshot(1, Bundle.pack({"slope": np.array([0, np.nan, 0], np.float32)}))
    monkeypatch.setattr(type(run), "snapshot", lambda run: broken)
    with pytest.raises(UserError, match="version 1 is not finite: 'slope' holds NaN or an infinity"):
        shoal.evaluate(run)
