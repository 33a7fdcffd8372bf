"""How the state of environments is told is found once in a run: its other processes, and later lives, go by what was found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shoal.actors.workers import lives
from shoal.actors.workers.rollout import Rollout
from shoal.envs.logged import ACTIONS, ATTRIBUTES
from shoal.jobs.problems import environment
from shoal.jobs.reinforcement import Reinforcement
from shoal.protocol.work import Task
from shoal.runs.living import configured
from shoal.runs.rundir import RunDir

JOB = """
from pathlib import Path

import gymnasium

from shoal import Reinforcement
from shoal.jobs.problems import environment

trial = environment.state_told


def counted(*given):
    with Path(__file__).with_name("trials").open("a") as file:
        file.write("tried\\n")
    return trial(*given)


environment.state_told = counted
small = {"num_envs": 2, "rollout_length": 16, "hidden": (8,), "clients": 2, "eval_episodes": 0}
job = Reinforcement(lambda: gymnasium.make("CartPole-v1"), method="ppo", total_timesteps=64 * 4, **small)
"""
SMALL: dict[str, Any] = {"method": "ppo", "num_envs": 2, "rollout_length": 4, "hidden": (8,)}


def untried(*given: Any) -> None:
    raise AssertionError("a trial was made")


def test_a_run_with_two_actors_from_elsewhere_makes_one_trial_and_later_lives_make_none(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    shoal, hub = [sys.executable, "-m", "shoal"], f"ipc://{tmp_path}/hub"
    words = ["coordinator", "job.py:job", "--bind", hub, "--run-dir", "run", "--quiet"]
    with subprocess.Popen([*shoal, *words], cwd=tmp_path, stdout=subprocess.DEVNULL) as begun:
        joins = [*shoal, "actor", hub, "--job", "job.py:job", "--count", "2"]
        joined = subprocess.run(joins, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
        assert (begun.wait(120), joined.returncode) == (0, 0), joined.stderr
    found = json.loads((tmp_path / "run" / "findings.json").read_text())["state"]
    assert (found["size"] > 0, found["way"], found["why"]) == (True, ATTRIBUTES, "")
    for later in (["resume", "run", "total_timesteps=512", "--actors", "2", "--quiet"], ["evaluate", "run", "--episodes", "2"]):
        done = subprocess.run([*shoal, *later], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "trials").read_text() == "tried\n"
    assert "refused" not in (tmp_path / "run" / "log.txt").read_text()


def test_an_actor_goes_by_what_its_coordinator_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "state_told", untried)
    sizes = []
    for size in (0, 500, 1140):
        told = {"settings": {"num_envs": 3}, "findings": {"state": {"size": size, "way": ACTIONS, "why": "it is so"}}}
        job = configured(Reinforcement("CartPole-v1", **SMALL), told)
        worker = job.worker()
        assert isinstance(worker, Rollout)
        assert (worker.way, job.problem.findings()) == (ACTIONS, told["findings"])
        sizes.append(worker.life)
    assert (sizes[0], sizes[2] - sizes[1]) == (0, 3 * 640)


@pytest.mark.parametrize("odd", [None, 7, {}, {"state": "x"}, {"state": {"size": 9, "way": "guess", "why": ""}}])
def test_findings_of_another_form_have_no_effect(odd: Any) -> None:
    made = configured(Reinforcement("CartPole-v1", **SMALL), {"findings": odd})
    assert made.problem.findings() == {}


def test_an_actor_that_cannot_tell_its_environments_so_says_it_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    findings = {"state": {"size": 900, "way": ACTIONS, "why": ""}}  # such a vector keeps no log
    job = configured(Reinforcement("CartPole-v1", **SMALL), {"findings": findings})
    worker, weights = job.worker(), job.problem.first(0)[0]
    for version in range(3):
        bundle = worker.run(weights, 0, Task(version, 0, (0,))).bundle
        assert bundle is not None
        assert lives.heard(bundle).packed == b""
    said = capfd.readouterr().err.splitlines()
    why = "CartPoleVectorEnv steps its environments all at once"
    assert said == [f"shoal: environments begin anew where another actor or a resumed run goes on with them: {why}"]


def test_what_an_earlier_life_found_stays(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.findings() == {}
    run.keep_findings({})
    assert not list(tmp_path.iterdir())
    run.keep_findings({"state": {"size": 1}})
    run.keep_findings({"state": {"size": 2}})
    assert run.findings() == {"state": {"size": 1}}
    (tmp_path / "findings.json").write_text("[half")
    assert run.findings() == {}
