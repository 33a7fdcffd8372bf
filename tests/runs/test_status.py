"""What `shoal status` says of a run that goes on, stands still, is gone, or has ended."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typed import mistake, ran, shoal

from shoal.coordinator.reports import Progress
from shoal.protocol.link import Hub
from shoal.protocol.messages import Ask, Beat, Envelope, Message, Refused, State
from shoal.runs.rundir import Config, RunDir
from shoal.runs.status import Status, asked, status, told
from shoal.watching.sources import Elsewhere, sources_of

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
    assert not seen.file.exists()
    seen.file.parent.mkdir()
    clock.now += 2.0
    seen.moved(progress(9))
    assert json.loads(seen.file.read_text())["version"] == 9


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


# Of a coordinator at an address


@contextmanager
def coordinator(answers: dict[type[Message], Message]) -> Iterator[str]:
    """The address of something that answers these messages, and drops others."""
    hub, ended = Hub("tcp://127.0.0.1:*"), threading.Event()

    def answer() -> None:
        while not ended.is_set():
            hub.wait(0.05)
            for heard in hub.drain():
                if heard.envelope and (message := answers.get(type(heard.envelope.message))):
                    hub.send(heard.peer, Envelope(heard.envelope.session, 1, message))

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield hub.address
    finally:
        ended.set()
        thread.join()
        hub.close()


RUNNING = State("run-1", "running", 4242, 7, "100 rounds", 0.07, 0, 4, 2.0)


def test_an_address_is_asked_and_told_of_as_a_folder_is(tmp_path: Path) -> None:
    written(tmp_path)
    _, of_folder = status(tmp_path / "run", 60, AT + 2.0)
    with coordinator({Ask: RUNNING}) as address:
        well, found = asked(address, None, 60, AT)
        said = shoal("status", address, "--json")
    assert (well, found["why"], found["version"], found["run"]) == (True, "", 7, "run-1")
    assert {*found} - {"address", "run"} == {*of_folder} - {"run_dir"}
    assert (said.code, said.result["actors"], said.result["seconds_since_step"]) == (0, 4, 2.0)
    assert f"{address}: alive" in told(found)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"still": 61.0, "waiting_for": ("an actor to join, for 61 s",)}, "no step for 61 s, of at most 60"),
        ({"state": "done"}, "ended: done"),
        ({"state": "evil\n\x1b[2J"}, "ended: evil\\n\\x1b[2J"),
    ],
)
def test_a_coordinator_whose_run_stands_still_or_has_ended_is_not_well(more: dict[str, Any], why: str) -> None:
    with coordinator({Ask: replace(RUNNING, **more)}) as address:
        well, found = asked(address, None, 60, AT)
        said = shoal("status", address)
    assert (well, found["why"]) == (False, why)
    assert said.code == 1
    assert all(f"waiting for {one}" in said.out for one in more.get("waiting_for", ()))


def test_a_page_about_an_address_shows_its_answers() -> None:
    with coordinator({Ask: RUNNING}) as address:
        [source] = sources_of([address])
        assert isinstance(source, Elsewhere)
        source.look()
        rows, state = source.cursor("").news()
    assert [row[0] for row in rows[1]["rows"]] == [7]
    assert (source.about()["name"], state[1]["status"]["actors"], state[1]["status"]["why"]) == ("run-1", 4, "")


def test_a_coordinator_that_does_not_know_the_question_is_said_to_be_older() -> None:
    with coordinator({Beat: Refused("not of this run: say Hello", False)}) as address:
        well, found = asked(address, None, 60, AT, patience=2.0)
    assert not well
    assert "a coordinator of an older version is there" in found["why"]


def test_an_address_where_nobody_is_has_exit_code_1_and_one_of_no_form_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.runs.status.asked.__defaults__", (time.monotonic, 0.2))
    said = shoal("status", "tcp://127.0.0.1:9", "--json")
    assert (said.code, said.result["state"]) == (1, "no answer")
    assert "a port is a number" in mistake("status", "tcp://127.0.0.1:99999")
    assert "give --key NAME" in mistake("status", "tcp://192.0.2.1:5555")
