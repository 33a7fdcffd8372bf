"""A run that stands still says on the console what it stands in: the culprit, its last state and its stack."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.faults.patient import ended, wait_until

JOB = """
from pathlib import Path

import gymnasium
import numpy as np

from shoal import Reinforcement
from shoal.actors import whereabouts
from shoal.aggregators.ppo import PPOLearner
from shoal.coordinator.deciding import stall

HERE, WHERE = Path(__file__).parent, {where!r}
whereabouts.AFTER, whereabouts.EVERY, stall.STALL = 0.1, 0.1, 6.0  # seconds, in place of 5, 2 and 10


def hang_once(where):  # until the test writes into the pipe
    if where == WHERE and (HERE / "hangs").exists():
        (HERE / "hangs").unlink(missing_ok=True)
        with open(HERE / "pipe") as pipe:
            pipe.read()


class Slow(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {{}}

    def step(self, action):
        hang_once("env.step")
        self.at += 1
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), 1.0, self.at == 9, False, {{}}


step = PPOLearner.step


def stepping(learner):
    hang_once("learn")
    if not learner.steps:  # the first step: there is no trial of the environment any more
        (HERE / "hangs").touch()
    return step(learner)


PPOLearner.step = stepping
sizes = dict(num_envs=2, rollout_length=8, clients=2, total_timesteps=32 * 5, eval_episodes=0, hidden=(8,))
job = Reinforcement(Slow, method="ppo", **sizes)
"""


@pytest.mark.parametrize(
    ("where", "culprit"),
    [
        ("env.step", r"warning: nothing moves for \d+ s: \S+, on task \(1, 0\), for .*: in env\.step for \d+ s$"),
        ("learn", r"warning: nothing moves for \d+ s: the learner, in learn, at the step to version 2$"),
    ],
)
def test_the_console_names_the_culprit_its_state_and_its_stack(where: str, culprit: str, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB.format(where=where))
    os.mkfifo(tmp_path / "pipe")
    words = [sys.executable, "-m", "shoal", "simulate", "job.py", "--run-dir", "run", "--actors", "1"]
    said = tmp_path / "said"
    with said.open("w") as out:
        run = subprocess.Popen(words, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=out, stderr=out, text=True)
        try:
            wait_until(lambda: run.poll() is not None or "as pipe:" in said.read_text(), said.read_text)
            assert run.poll() is None, said.read_text()
            (tmp_path / "pipe").write_text("go on")
            assert ended(run, tmp_path) == 0, said.read_text()
        finally:
            if run.poll() is None:
                run.kill()
                run.wait()
    text = said.read_text()
    [told] = [each for each in text.splitlines() if "nothing moves for" in each]
    assert re.search(culprit, told), told
    stack = text[text.index(told) :]
    assert f'hang_once("{where}")' in stack
    assert "nothing moves for" in (tmp_path / "run" / "log.txt").read_text()
