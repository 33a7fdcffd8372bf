"""Environments that start processes of their own: they are closed in order, and a run that is over ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from shoal.actors import close
from shoal.envs.making import make_vector
from shoal.envs.vector import EnvError
from shoal.faults.patient import SILENCE
from shoal.faults.patient import ran as finished
from shoal.protocol.parent import of_this_process

JOB = """
import pathlib
import gymnasium
from gymnasium.vector import AsyncVectorEnv
from shoal import Reinforcement


class Noted(AsyncVectorEnv):
    def close_extras(self, **given):
        super().close_extras(**given)
        pathlib.Path("closed").open("a").write("once ")


def many(num_envs):
    return Noted([lambda: gymnasium.make("CartPole-v1")] * num_envs)


sizes = dict(num_envs=2, rollout_length=8, total_timesteps=200, eval_every=5, eval_episodes=2)
job = Reinforcement(many, method="ppo", clients=1, num_minibatches=1, **sizes)
"""


@pytest.mark.parametrize("actors", [0, 1])
def test_a_run_whose_environments_have_processes_ends_without_a_word(tmp_path: Path, actors: int) -> None:
    (tmp_path / "mine.py").write_text(JOB)
    words = [sys.executable, "-m", "shoal", "simulate", "mine.py", "--actors", str(actors), "--run-dir", "run"]
    done = finished(words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "BrokenPipe" not in done.stderr + done.stdout
    assert (tmp_path / "closed").read_text().count("once") >= 3  # the one whose spaces were looked at, training, evaluation


def test_a_handler_of_this_process_is_not_one_of_its_children() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, of_this_process(lambda number, _: heard.append(number)))
    try:
        ours, theirs = multiprocessing.Pipe()

        def live() -> None:
            theirs.send("here")
            threading.Event().wait()

        child = multiprocessing.get_context("fork").Process(target=live, daemon=True)
        child.start()
        assert ours.recv() == "here"  # Python drops a signal that comes in the midst of a fork
        child.terminate()
        child.join(SILENCE)
        assert child.exitcode == -signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_a_workers_close_raises_ends_no_run(capsys: Any) -> None:
    class Bad:
        def run(self, *_: Any) -> Any: ...

        def close(self) -> None:
            raise OSError("the pipe is gone")

    close(Bad())
    assert capsys.readouterr().err == "shoal: closing the worker raised OSError: the pipe is gone\n"


class Emptying(gymnasium.Env[Any, Any]):
    """Raises at its third step."""

    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self) -> None:
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps == 3:
            raise ZeroDivisionError("the tank is empty")
        return np.zeros(2, np.float32), 1.0, False, False, {}


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_exception_in_an_environments_own_process_is_told_once_and_with_its_place(wrapped: bool) -> None:
    def many(num_envs: int) -> Any:
        made = AsyncVectorEnv([Emptying] * num_envs)
        return RecordEpisodeStatistics(made) if wrapped else made

    envs = make_vector(many, 2)
    envs.reset(0)
    place = r"many: ZeroDivisionError: the tank is empty \(test_own_processes.py, line \d+, in step\)$"
    for _ in range(2):
        envs.step(np.zeros(2, np.int64))
    with pytest.raises(EnvError, match=place) as raised:  # and no warning of gymnasium's
        envs.step(np.zeros(2, np.int64))
    assert "in the environment's process:\nTraceback" in "".join(traceback.format_exception(raised.value))
    envs.close()
