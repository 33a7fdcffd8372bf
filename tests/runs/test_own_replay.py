"""DQN from outside, as docs/own.md shows it: it learns from a replay, and goes on with the same bits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shoal
from shoal.jobs.catalog import find

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own.md"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The job of the page's block."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    _, _, section = PAGE.read_text().partition("## A learner with a replay")
    Path("own_replay.py").write_text(section.split("```python\n", 1)[1].split("```", 1)[0])
    found = find("own_replay.py:job")
    sys.modules.pop("own_replay", None)
    return found


def test_a_learner_of_ones_own_learns_from_transitions_of_the_replay(made: Any) -> None:
    small = made.configured({"total_timesteps": 1_280, "learning_starts": 640, "batch_size": 32, "eval_episodes": 0})
    rows = list(shoal.run(small, actors=0, folder="run", show=False).history)
    made_steps = [row["metrics"]["updates"] for row in rows]
    assert made_steps[-1] == (rows[-1]["steps"] - 640) // 2  # replay_ratio=0.5
    assert all(np.isfinite(row["metrics"]["value_loss"]) for row in rows if row["metrics"]["updates"])


@pytest.mark.parametrize("replay", ["uniform", "prioritized"])
def test_a_resumed_run_of_a_learner_of_ones_own_has_the_bits_of_one_that_never_stopped(made: Any, replay: str) -> None:
    settings = {"total_timesteps": 1_280, "learning_starts": 256, "batch_size": 32, "replay": replay, "eval_episodes": 0}
    whole = shoal.run(made.configured(settings), actors=0, folder="whole", show=False)
    half = shoal.run(made.configured(settings), actors=0, folder="half", show=False, stop_when=lambda row: row["version"] >= 10)
    assert half.summary["version"] < whole.summary["version"]
    assert half.resume(show=False).summary["weights_sha256"] == whole.summary["weights_sha256"]
