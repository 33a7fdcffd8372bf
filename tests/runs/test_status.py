"""What `shoal status` says of a run that goes on, stands still, is gone, or has ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typed import mistake, ran, shoal

from shoal.coordinator.reports import Progress
from shoal.runs.rundir import Config, RunDir
from shoal.runs.status import Status, status, told

AT = 1_000_000.0


def progress(version: int, **more: Any) -> Progress:
    return Progress(version, "100 rounds", version / 100, 1.0, 10, 5.0, 0, 0.0, 4, **more)


class Clock:
    now = AT

    def __call__(self) -> float:
        return self.now


def written(folder: Path) -> tuple[Status, Clock, RunDir]:
    (folder / "run").mkdir()
    run, clock = RunDir(folder / "run"), Clock()
    run.write_config(Config("digits"))
    seen = Status(run, clock)
    seen.stepped(7, {}, progress(7))
    return seen, clock, run


def test_a_run_that_steps_is_alive(tmp_path: Path) -> None:
    written(tmp_path)
    well, found = status(tmp_path / "run", 60, AT + 2.0)
    assert well
    assert (found["version"], found["actors"], found["seconds_since_step"], found["why"]) == (7, 4, 2.0, "")


def test_a_run_that_moves_no_more_is_not_well_and_names_what_it_waits_for(tmp_path: Path) -> None:
    seen, clock, _ = written(tmp_path)
    clock.now = AT + 61.0
    seen.moved(progress(7, waiting_for=("an actor to join, for 61 s",)))
    well, found = status(tmp_path / "run", 60, clock.now)
    assert (well, found["why"]) == (False, "no step for 61 s, of at most 60")
    assert "waiting for an actor to join, for 61 s" in told(found)
    assert status(tmp_path / "run", 120, clock.now)[0]


def test_a_coordinator_that_is_gone_is_not_well(tmp_path: Path) -> None:
    written(tmp_path)
    well, found = status(tmp_path / "run", 60, AT + 11.0)
    assert not well
    assert "has written nothing for 11 s" in found["why"]


def test_it_is_written_at_most_once_a_second_and_at_the_end(tmp_path: Path) -> None:
    seen, clock, run = written(tmp_path)
    clock.now = AT + 0.9
    seen.moved(progress(8))
    assert json.loads(run.status_file.read_text())["version"] == 7
    seen.ended("done")
    assert json.loads(run.status_file.read_text())["version"] == 8
    assert status(tmp_path / "run", 60, clock.now)[1]["why"] == "ended: done"


def test_a_folder_that_vanished_ends_no_run(tmp_path: Path) -> None:
    seen, clock, _ = written(tmp_path)
    seen.file = tmp_path / "gone" / "status.json"
    clock.now += 2.0
    seen.moved(progress(9))


def test_the_command_has_exit_code_1_for_a_run_that_has_ended(tmp_path: Path) -> None:
    ran("simulate", "digits", "rounds=1", "eval_every=0", "--actors", 0, "--run-dir", tmp_path / "run", "--quiet")
    said = shoal("status", tmp_path / "run", "--json")
    assert (said.code, said.result["state"], said.result["version"]) == (1, "done", 1)


def test_a_folder_without_a_run_is_a_mistake(tmp_path: Path) -> None:
    assert "is no run" in mistake("status", tmp_path)


@pytest.mark.parametrize("content", ["", "{"])
def test_a_broken_file_is_one_line(tmp_path: Path, content: str) -> None:
    _, _, run = written(tmp_path)
    run.status_file.write_text(content)
    assert "status.json" in mistake("status", tmp_path / "run")
