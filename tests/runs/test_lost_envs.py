"""Whole runs whose environments hang and die: they reach their end, and no process outlives whoever needed it."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from typed import ran
from whole import run

from shoal.faults.family import lives
from shoal.faults.patient import ran as finished
from shoal.faults.patient import wait_until
from shoal.jobs.catalog import find
from shoal.jobs.job import Job
from shoal.jobs.reinforcement import Reinforcement
from shoal.protocol.errors import UserError

SHOAL = [sys.executable, "-m", "shoal"]
JOB = """
import faulthandler, os, pathlib, signal, threading
import gymnasium
from shoal import Reinforcement


class Frail(gymnasium.Wrapper):
    '''Meets its fate at its 60th step.'''

    steps = 0

    def reset(self, **given):
        pathlib.Path(f"env-{os.getpid()}").touch()
        return super().reset(**given)

    def step(self, action):
        self.steps += 1
        if self.steps == 60:
            fate(self)
        return super().step(action)


def hang(env):
    pathlib.Path(f"hangs-{os.getpid()}").touch()
    threading.Event().wait()


def crash(env):
    faulthandler.disable()
    os.kill(os.getpid(), signal.SIGSEGV)


def either(env):
    (hang if env.unwrapped.np_random.random() < 0.3 else crash)(env)


def stumble(env):
    raise ValueError("the floor is wet")


fate = either
sizes = dict(algorithm="ppo", clients=2, num_envs=3, rollout_length=32, num_minibatches=1)
env = lambda: Frail(gymnasium.make("CartPole-v1", max_episode_steps=25))
job = Reinforcement(env, step_timeout=0.5, total_timesteps=1200, **sizes)
"""
FOR_EVER = ("step_timeout=50", "total_timesteps=1000000000")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(JOB)
    return tmp_path


def fated(folder: Path, fate: str, at: int = 60) -> None:
    (folder / "mine.py").write_text(JOB.replace("fate = either", f"fate = {fate}").replace("steps == 60", f"steps == {at}"))


def failed(folder: Path) -> str:
    """What `shoal simulate mine.py` says, which must fail."""
    words = [*SHOAL, "simulate", "mine.py", "--actors", "1", "--run-dir", "failed"]
    done = finished(words, folder)
    assert done.returncode == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize("actors", [0, 2])
def test_a_run_whose_environments_hang_and_crash_reaches_its_end(folder: Path, actors: int) -> None:
    before = set(psutil.Process().children(recursive=True))
    words = ("eval_every=3", "eval_episodes=2", "--actors", actors, "--json", "--run-dir", "run")
    result = ran("simulate", "mine.py", *words).result
    assert 1200 - 192 < result["steps"] <= 1200  # one more version would have 192 steps
    assert result["metrics"]["env_replaced"] >= 12  # six environments of 200 steps, at 60 a life
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    counts = [row["env_replaced"] for row in rows if "env_replaced" in row]
    assert counts == sorted(counts)
    assert "eval/env_replaced" not in rows[-1]
    assert ran("evaluate", "run", "--episodes", 4, "--json").result["episodes"] == 4
    gc.collect()  # a command ends with its process; here its job may lie about
    assert set(psutil.Process().children(recursive=True)) <= before
    assert any(folder.glob("hangs-*"))


def test_the_weights_are_those_of_a_run_in_the_actors_own_process() -> None:
    settings: dict[str, Any] = {"clients": 2, "num_envs": 2, "num_minibatches": 1, "total_timesteps": 512, "eval_episodes": 2}

    def job(step_timeout: float) -> Job:
        return Reinforcement("Acrobot-v1", algorithm="ppo", step_timeout=step_timeout, eval_every=2, **settings)

    apart, together = run(job(30), 2), run(job(0), 0)  # two actors on threads: each starts a hatchery of its own
    assert apart.sha256 == together.sha256
    assert apart.seen.last is not None
    assert together.seen.last is not None
    assert apart.seen.last.metrics["eval/return_mean"] == together.seen.last.metrics["eval/return_mean"]
    assert "env_replaced" not in apart.seen.last.metrics


def test_an_exception_fails_the_run_and_its_traceback_is_in_the_log(folder: Path) -> None:
    fated(folder, "stumble", at=3)
    assert "EnvError: ValueError: the floor is wet" in failed(folder)
    assert re.search(r'mine.py", line \d+, in stumble', (folder / "failed" / "log.txt").read_text())


def test_an_environment_that_never_makes_a_step_fails_the_run_in_one_line(folder: Path) -> None:
    fated(folder, "crash", at=1)
    said = failed(folder)
    assert re.search(
        r"environment \d was replaced 5 times in a row without one good step; at last it was ended by SIGSEGV", said
    )
    assert "Traceback" not in said


def test_a_function_that_was_not_prepared_is_one_line(folder: Path) -> None:
    with pytest.raises(UserError, match=r"have processes of their own .* before there are threads"):
        find(f"{folder}/mine.py:job").worker()


# Processes


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., psutil.Process]]:
    started: list[subprocess.Popen[bytes]] = []

    def begin(*words: str) -> psutil.Process:
        with (folder / f"log-{len(started)}").open("wb") as log:
            started.append(subprocess.Popen([*SHOAL, *words], stdout=log, stderr=log, start_new_session=True))
        return psutil.Process(started[-1].pid)

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def named(folder: Path, what: str) -> set[int]:
    return {int(path.name.partition("-")[2]) for path in folder.glob(f"{what}-*")}


def hung(folder: Path, run: psutil.Process) -> set[psutil.Process]:
    """All of the run's processes, once an environment hangs."""
    wait_until(lambda: named(folder, "hangs"))
    family = set(run.children(recursive=True))
    assert {process.pid for process in family} >= named(folder, "hangs")
    return family


def test_an_actor_that_is_killed_takes_its_environments_along(folder: Path, start: Callable[..., psutil.Process]) -> None:
    fated(folder, "hang")
    run = start("simulate", "mine.py", *FOR_EVER, "--actors", "1")
    family = hung(folder, run)
    environments = {process for process in family if process.pid in named(folder, "env")}
    assert len(environments) == 2 * 3
    [actor] = [grandchild for child in run.children() for grandchild in child.children() if grandchild not in environments]
    actor.kill()
    wait_until(lambda: not any(map(lives, environments)))
    wait_until(lambda: len(named(folder, "env")) >= 12)  # another actor, with environments of its own


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_a_run_that_is_ended(folder: Path, start: Callable[..., psutil.Process], number: int) -> None:
    fated(folder, "hang")
    run = start("simulate", "mine.py", *FOR_EVER, "--actors", "2")
    family = hung(folder, run)
    run.send_signal(number)
    wait_until(lambda: not any(map(lives, family)))


def test_an_actor_from_elsewhere_does_as_the_coordinator_says(folder: Path, start: Callable[..., psutil.Process]) -> None:
    """Its own file has no step_timeout; the function is handed on all the same. One without a job starts its hatchery."""
    fated(folder, "crash")
    start("coordinator", "mine.py", "total_timesteps=3000", "--bind", f"ipc://{folder}/hub", "--run-dir", "run", "--json")
    (folder / "own.py").write_text((folder / "mine.py").read_text().replace("step_timeout=0.5", "step_timeout=0"))
    own = start("actor", f"ipc://{folder}/hub", "--job", "own.py")
    wait_until((folder / "run" / "summary.json").exists)
    assert json.loads((folder / "run" / "summary.json").read_text())["metrics"]["env_replaced"] > 0
    wait_until(lambda: not lives(own))


def test_an_actor_without_a_job_has_environments_of_a_fresh_interpreter(
    start: Callable[..., psutil.Process], folder: Path
) -> None:
    words = ("coordinator", "gymnasium:CartPole-v1", "step_timeout=30", "num_envs=2", "total_timesteps=2000")
    start(*words, "--bind", f"ipc://{folder}/hub", "--run-dir", "run")
    joined = start("actor", f"ipc://{folder}/hub")
    seen: list[psutil.Process] = []
    wait_until(lambda: seen.extend(joined.children(recursive=True)) or len(seen) >= 3)
    wait_until((folder / "run" / "summary.json").exists)
    wait_until(lambda: not any(map(lives, seen)))
