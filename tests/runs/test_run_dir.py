"""What a run leaves behind."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from typed import ran

from shoal.commands.arguments import parser
from shoal.commands.cli import ACTS
from shoal.coordinator.reports import Before, Progress, Report
from shoal.faults.patient import ran as finished
from shoal.protocol.errors import UserError
from shoal.protocol.keys import KeyFolder
from shoal.runs.observers import Lines, Record, Together
from shoal.runs.run import trusted
from shoal.runs.rundir import Config, RunDir, short_name
from shoal.runs.signing import sign
from shoal.runs.summary import closing, json_line, summary
from shoal.runs.threads import crowded

WHEN = datetime(2025, 3, 1, 9, 5, 7)


def progress(version: int = 3, **changes: Any) -> Progress:
    plain: dict[str, Any] = {"goal": "100 rounds", "done": 0.03, "seconds": 1.5, "contributions": 30, "steps": 0, "actors": 2}
    rates = {"contributions_per_second": 20.0, "steps_per_second": 0.0}
    return Progress(version, **{**plain, **rates, **changes})


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# The folder


def test_a_run_is_named_by_its_job_and_the_time_it_began(tmp_path: Path) -> None:
    run = RunDir.create("digits", WHEN, tmp_path / "runs")
    assert run.path == tmp_path / "runs" / "digits-20250301-090507"
    assert run.path.is_dir()


def test_two_runs_in_one_second_get_two_folders_and_latest_is_the_second(tmp_path: Path) -> None:
    names = [RunDir.create("digits", WHEN, tmp_path).path.name for _ in range(3)]
    assert names == ["digits-20250301-090507", "digits-20250301-090507-2", "digits-20250301-090507-3"]
    assert os.readlink(tmp_path / "latest") == names[-1]
    assert sorted(p.name for p in tmp_path.iterdir()) == [*names, "latest"]


def test_latest_is_found_by_the_run_s_own_name(tmp_path: Path) -> None:
    run = RunDir.create("digits", WHEN, tmp_path)
    run.write_config(Config("digits"))
    found = RunDir.open(tmp_path / "latest")
    assert (found.name, found.path) == (run.path.name, run.path)


def test_a_folder_called_latest_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest" / "mine").write_text("mine")
    RunDir.create("digits", WHEN, tmp_path)
    assert (tmp_path / "latest" / "mine").read_text() == "mine"


def test_a_named_folder_is_taken_when_it_is_new_or_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert RunDir.create("digits", WHEN, tmp_path / "runs", tmp_path / "a" / "new").path == tmp_path / "a" / "new"
    assert RunDir.create("digits", WHEN, tmp_path / "runs", tmp_path / "empty").path == tmp_path / "empty"
    assert not (tmp_path / "latest").exists()  # a link among the user's own folders would be a surprise


def test_a_named_folder_among_the_runs_is_the_latest(tmp_path: Path) -> None:
    RunDir.create("digits", WHEN, tmp_path, tmp_path / "mine")
    assert os.readlink(tmp_path / "latest") == "mine"


def test_a_run_dir_that_holds_something_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "keep").write_text("precious")
    with pytest.raises(UserError) as error:
        RunDir.create("digits", WHEN, path=tmp_path)
    assert str(tmp_path) in one_line(error)
    assert "not empty" in one_line(error)
    assert [p.name for p in tmp_path.iterdir()] == ["keep"]


def test_a_run_dir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError) as error:
        RunDir.create("digits", WHEN, path=tmp_path / "file")
    assert "is a file" in one_line(error)


def test_a_path_that_is_no_run_names_the_nearest_run(tmp_path: Path) -> None:
    for job in ("digits", "cartpole"):
        RunDir.create(job, WHEN, tmp_path).write_config(Config(job))
    with pytest.raises(UserError) as error:
        RunDir.open(tmp_path / "cartpol-20250301-090507")
    assert "does not exist" in one_line(error)
    assert one_line(error).endswith(str(tmp_path / "cartpole-20250301-090507"))


def test_with_no_run_at_all_the_first_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        RunDir.open(tmp_path)
    assert "has no config.toml" in one_line(error)
    assert "shoal simulate digits" in one_line(error)


@pytest.mark.parametrize(
    ("job", "name"),
    [
        ("digits", "digits"),
        ("gymnasium:CartPole-v1", "gymnasium-CartPole-v1"),
        ("some/where/mine.py:job", "mine"),
        ("mine.py:other", "mine-other"),
        ("package.module:job", "package-module"),
        ("../..", "run"),
    ],
)
def test_a_job_s_short_name_can_name_a_folder(job: str, name: str) -> None:
    assert short_name(job) == name


# The config

SETTINGS = {
    "lr": 0.1,
    "clients": 100,
    "name": 'a "quoted"\nname',
    "yes": True,
    "hidden": [64, 64],
    "big": math.inf,
}


def test_a_config_comes_back_as_it_was(tmp_path: Path) -> None:
    config = Config("digits", seed=7, actors=0, transport="tcp", device="cpu", settings=SETTINGS)
    run = RunDir.create("digits", WHEN, tmp_path)
    run.write_config(config)
    assert RunDir.open(run.path).config() == config


def test_a_config_is_written_once(tmp_path: Path) -> None:
    run = RunDir.create("digits", WHEN, tmp_path)
    run.write_config(Config("digits"))
    with pytest.raises(FileExistsError):
        run.write_config(Config("cartpole"))
    assert run.config().job == "digits"


def test_a_user_s_own_file_needs_only_a_job(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("job = 'digits'\n[settings]\nlr = 0.2\n")
    assert Config.load(tmp_path / "mine.toml") == Config("digits", settings={"lr": 0.2})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("job = ", "is not TOML"),
        ("seed = 1", "has no `job`"),
        ("job = 'digits'\nsed = 1", "did you mean 'seed'"),
        ("job = 'digits'\nseed = -1", "seed = -1; it must be a whole number from 0"),
        ("job = 'digits'\nseed = true", "seed = True; it must be a whole number"),
        ("job = 7", "job = 7; it must be a string"),
        ("job = 'digits'\ntransport = 'udp'", "one of shm, ipc, tcp"),
        ("job = 'digits'\nsettings = 3", "make it a table"),
    ],
)
def test_a_wrong_config_is_one_line_naming_file_and_remedy(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UserError) as error:
        Config.load(tmp_path / "mine.toml")
    assert said in one_line(error)
    assert "mine.toml" in one_line(error)


def test_a_config_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        Config.load(tmp_path / "none.toml")


# The history

DEADLY = """
import os, signal, threading
import numpy as np
from torch import nn
from shoal import Federated

def deadly(outputs, labels):
    rows = "run/metrics.jsonl"
    if "DEADLY" in os.environ and len(labels) == 12 and os.path.exists(rows) and os.path.getsize(rows):  # held-out data
        while os.environ["DEADLY"] == "told" and not os.path.exists("run/metrics.waiting"):
            threading.Event().wait(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0

x, y = np.random.default_rng(0).normal(size=(60, 3)), np.arange(60) % 2
own = {"partition": "iid", "rounds": 3, "clients": 3, "cohort": 3}
job = Federated(lambda: nn.Linear(3, 2), (x, y), metrics={"deadly": deadly}, **own)
"""


def recorded(tmp_path: Path, *versions: int, **changes: Any) -> RunDir:
    run = RunDir(tmp_path)
    with Record(run, started=1_700_000_000.0) as record:
        for version in versions:
            record.stepped(version, {"loss": 1.0 / version}, progress(version, seconds=version / 2, **changes))
    return run


def test_every_step_is_a_line_of_json_at_once(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with Record(run, started=0.0) as record:
        record.stepped(1, {"loss": 0.5}, progress(1, seconds=0.25, lag=(0, 0.5, 1)))
        (line,) = run.metrics_file.read_text().splitlines()  # before the file is closed
    expected = {"version": 1, "seconds": 0.25, "steps": 0, "contributions": 30, "actors": 2, "lag": [0, 0.5, 1]}
    assert json.loads(line) == {**expected, "metrics": {"loss": 0.5}}


def test_a_line_has_the_histogram_of_lags_if_a_lag_is_above_0(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with Record(run, started=0.0) as record:
        record.stepped(1, {}, progress(1, seconds=0.25, lags=((0, 2),)))
        record.stepped(2, {}, progress(2, seconds=0.5, lags=((0, 1), (3, 2))))
    assert [row.get("lags") for row in run.rows()] == [None, [[0, 1], [3, 2]]]


def killed_before_its_evaluation(folder: Path) -> RunDir:
    """The folder of a run that was killed when version 2 was made and not evaluated."""
    run = RunDir(folder)
    record = Record(run, 0.0, evaluated=lambda version: version == 2)
    record.stepped(1, {"loss": 1.0}, progress(1, seconds=1.0))
    record.stepped(2, {"loss": 0.5}, progress(2, seconds=2.0, contributions=20))
    for file in (record.metrics, record.log, record.events):
        file.close()
    assert [row["version"] for row in run.rows()] == [1]
    return run


def test_a_row_that_waits_for_its_evaluation_outlives_its_process(tmp_path: Path) -> None:
    run = killed_before_its_evaluation(tmp_path)
    with Record(run, 0.0) as record:
        assert record.rewind(2) == Before(2.0, 20)
        record.stepped(2, {"accuracy": 0.9}, progress(2, seconds=5.0))
        record.stepped(3, {"loss": 0.25}, progress(3, seconds=6.0))
    assert [(row["version"], row["seconds"], row["metrics"]) for row in run.rows()] == [
        (1, 1.0, {"loss": 1.0}),
        (2, 2.0, {"loss": 0.5, "accuracy": 0.9}),
        (3, 6.0, {"loss": 0.25}),
    ]
    assert len(run.metrics_file.read_text().splitlines()) == 3
    assert not run.waiting_file.exists()
    assert RunDir(tmp_path).waiting(3) is None


def test_a_row_that_waited_is_dropped_with_its_version_and_kept_without_its_evaluation(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with Record(killed_before_its_evaluation(tmp_path / "a"), 0.0) as record:
        assert record.rewind(1) == Before(1.0, 30)  # it is made again
        record.stepped(2, {"loss": 0.75}, progress(2))
    assert [row["metrics"] for row in RunDir(tmp_path / "a").rows()] == [{"loss": 1.0}, {"loss": 0.75}]
    with Record(killed_before_its_evaluation(tmp_path / "b"), 0.0) as record:
        record.rewind(4)
        record.stepped(5, {"loss": 0.1}, progress(5))
    assert [row["metrics"] for row in RunDir(tmp_path / "b").rows()] == [{"loss": 1.0}, {"loss": 0.5}, {"loss": 0.1}]


@pytest.mark.parametrize("actors", [0, 1])
@pytest.mark.parametrize("at", [2, 3])
def test_a_run_that_is_killed_before_an_evaluation_evaluates_that_version_when_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, actors: int
) -> None:
    """at: the version whose evaluation never ends; the last one is 3. Without actors nothing of it was told before."""
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    Path("deadly.py").write_text(DEADLY)
    words = ["simulate", "deadly.py", f"eval_every={at}", "snapshot_every=0", "--actors", str(actors), "--run-dir", "run"]
    child = finished([sys.executable, "-m", "shoal", *words], tmp_path, {"DEADLY": "told" * actors})
    assert child.returncode == -9
    assert [row["version"] for row in RunDir("run").rows()] == list(range(1, at))
    ran("resume", "run", "--json")
    rows = RunDir("run").rows()
    assert [row["version"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert ("accuracy" in row["metrics"]) == (row["version"] in (at, 3))
        assert ("loss" in row["metrics"]) == (actors == 1 or row["version"] != at)
    unbroken = ran("simulate", "deadly.py", "--actors", 0, f"eval_every={at}", "--run-dir", "whole", "--json").result
    assert rows[-1]["metrics"]["accuracy"] == unbroken["metrics"]["accuracy"]
    assert "is done" in ran("resume", "run").out


def test_an_evaluation_after_the_last_step_stands_in_the_line_of_its_version(tmp_path: Path) -> None:
    run = recorded(tmp_path, 1)
    with Record(run, 0.0) as record:
        record.stepped(2, {"loss": 0.5}, progress(2))
        assert len(run.metrics_file.read_text().splitlines()) == 2  # it was there before it was evaluated
        record.stepped(2, {"accuracy": 0.9}, progress(2))
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert [(row["version"], row["metrics"]) for row in rows] == [(1, {"loss": 1.0}), (2, {"loss": 0.5, "accuracy": 0.9})]


@pytest.mark.parametrize("last", [3, 400])
def test_rows_of_a_disk_that_was_full_are_written_when_there_is_room(tmp_path: Path, last: int) -> None:
    """last: the version to which the disk is full; far more than a buffer holds, or few."""
    run = RunDir(tmp_path)
    with Record(run, 0.0) as record:
        record.stepped(1, {"loss": 0.5}, progress(1))
        disk = record.metrics._file
        with open(os.open("/dev/full", os.O_WRONLY), "wb", buffering=0) as full:
            record.metrics._file = full  # type: ignore[assignment]
            for version in range(2, last + 1):
                record.stepped(version, {"loss": 0.4}, progress(version))
            record.stepped(last, {"accuracy": 0.8}, progress(last))
        record.metrics._file = disk
        record.stepped(last + 1, {"loss": 0.3}, progress(last + 1))
        record.stepped(last + 1, {"accuracy": 0.9}, progress(last + 1))
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert [row["version"] for row in rows] == list(range(1, last + 2))
    assert [row["metrics"] for row in rows[-2:]] == [{"loss": 0.4, "accuracy": 0.8}, {"loss": 0.3, "accuracy": 0.9}]


def test_part_of_a_row_for_which_there_was_room_is_gone_on_with(tmp_path: Path) -> None:
    class Narrow:
        """A file that takes three bytes at a time, and at first no more than seven."""

        def __init__(self, path: Path) -> None:
            self.path, self.room = path, 7

        def write(self, given: bytes) -> int:
            if not (many := min(3, self.room, len(given))):
                raise OSError(errno.ENOSPC, "no space left")
            self.room -= many
            with self.path.open("ab") as file:
                return file.write(given[:many])

    lines = Lines(tmp_path / "lines")
    lines._file.close()
    narrow = Narrow(tmp_path / "lines")
    lines._file = narrow  # type: ignore[assignment]
    lines.add("first line")
    with pytest.raises(OSError, match="no space left"):
        lines.write()
    lines.add("second line")
    narrow.room = 1_000
    lines.write()
    assert (tmp_path / "lines").read_text() == "first line\nsecond line\n"
    assert lines.ends == (tmp_path / "lines").stat().st_size


def test_nan_and_infinity_are_null_in_valid_json(tmp_path: Path) -> None:
    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    run = RunDir(tmp_path)
    with Record(run, started=0.0) as record:
        record.stepped(1, {"loss": math.nan, "norm": math.inf, "lr": np.float32(0.5)}, progress(1))
    row = json.loads(run.metrics_file.read_text(), parse_constant=no_constant)
    assert row["metrics"] == {"loss": None, "norm": None, "lr": 0.5}


def test_a_resumed_run_goes_on_in_the_same_file_from_the_version_that_it_was_kept_at(tmp_path: Path) -> None:
    recorded(tmp_path, 1, 2, 3)
    run = RunDir(tmp_path)
    with Record(run, started=1_700_000_000.0) as record:
        before = record.rewind(1)
        assert before == Before(0.5, 30)
        for version in (2, 3, 4):
            record.stepped(version, {"loss": 0.5}, progress(version, seconds=before.seconds + version, contributions=99))
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert [(row["version"], row["contributions"], row["seconds"]) for row in rows] == [
        (1, 30, 0.5),
        (2, 99, 2.5),
        (3, 99, 3.5),
        (4, 99, 4.5),
    ]
    assert run.rows() == rows


def test_a_run_that_lost_no_version_keeps_its_history_as_it_is(tmp_path: Path) -> None:
    before = recorded(tmp_path, 1, 2).metrics_file.read_text()
    with Record(RunDir(tmp_path), started=0.0) as record:
        assert record.rewind(2) == Before(1.0, 30)
    assert RunDir(tmp_path).metrics_file.read_text() == before


def test_a_version_that_is_evaluated_after_its_step_is_one_line(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with Record(run, 0.0, lambda version: version % 2 == 0) as record:
        record.stepped(1, {"loss": 0.5}, progress(1))
        record.stepped(2, {"loss": 0.4}, progress(2))
        assert [row["version"] for row in run.rows()] == [1]
        record.stepped(2, {"accuracy": 0.9}, progress(2, contributions=33, seconds=9.0))
        assert run.rows()[-1]["metrics"] == {"loss": 0.4, "accuracy": 0.9}
        assert run.rows()[-1]["contributions"] == progress(2).contributions  # those of its step
        record.stepped(4, {"loss": 0.3}, progress(4))
        record.stepped(5, {"loss": 0.2}, progress(5))  # the evaluation of version 4 never came
        record.stepped(6, {"loss": 0.1}, progress(6))
    assert [row["version"] for row in run.rows()] == [1, 2, 4, 5, 6]
    assert len(run.metrics_file.read_text().splitlines()) == 5


def test_half_a_line_of_a_killed_run_spoils_nothing(tmp_path: Path) -> None:
    run = recorded(tmp_path, 1, 2)
    with run.metrics_file.open("a") as file:
        file.write('{"version": 3, "sec')
    assert [row["version"] for row in run.rows()] == [1, 2]
    assert [row["version"] for row in recorded(tmp_path, 3).rows()] == [1, 2, 3]


def test_a_run_that_wrote_nothing_has_no_rows(tmp_path: Path) -> None:
    assert RunDir(tmp_path).rows() == []


def test_reports_are_kept_in_the_log_with_control_characters_escaped(tmp_path: Path) -> None:
    run = recorded(tmp_path, 1)
    with Record(run, started=0.0, now=lambda: 1740819907.9) as record:
        record.report(Report("failed", "client 3: \x1b[2Jgone\nTraceback: x", "error", 2))
    assert run.log_file.read_text() == (
        "2025-03-01T09:05:07Z error: failed: client 3: \\x1b[2Jgone (2 times)\n    | Traceback: x\n"
    )


def events(folder: Path) -> list[Event]:
    files = sorted(str(p) for p in folder.glob("events.out.tfevents.*"))
    return [Event.FromString(raw) for file in files for raw in RawEventFileLoader(file).Load()]


def scalars(found: list[Event], tag: str) -> list[tuple[int, float]]:
    return [(e.step, v.simple_value) for e in found for v in e.summary.value if v.tag == tag]


def test_tensorboard_reads_the_same_numbers_back(tmp_path: Path) -> None:
    found = events(recorded(tmp_path, 1, 2, 4, lag=(0, 0.5, 1), shares={"waiting": 0.25}).path)
    assert found[0].file_version == "brain.Event:2"
    assert scalars(found, "loss") == [(1, 1.0), (2, 0.5), (4, 0.25)]
    assert [e.wall_time for e in found if e.summary.value] == [1_700_000_000.5, 1_700_000_001.0, 1_700_000_002.0]


def test_rates_lags_and_shares_are_written_once_a_second(tmp_path: Path) -> None:
    found = events(recorded(tmp_path, 1, 2, 4, lag=(0, 0.5, 1), shares={"waiting": 0.25}).path)  # at 0.5, 1 and 2 s
    assert scalars(found, "lag/mean") == [(1, 0.5), (4, 0.5)]
    assert scalars(found, "share/waiting") == [(1, 0.25), (4, 0.25)]
    assert scalars(found, "rate/contributions") == [(1, 20.0), (4, 20.0)]


def test_reinforcement_runs_are_drawn_over_environment_steps(tmp_path: Path) -> None:
    found = events(recorded(tmp_path, 2, steps=640).path)
    assert scalars(found, "loss") == [(640, 0.5)]


def test_tensorboard_drops_what_a_resumed_run_went_over_again(tmp_path: Path) -> None:
    recorded(tmp_path, 1, 2, 3)
    starts = [e.step for e in events(recorded(tmp_path, 2, 3).path) if e.session_log.status == SessionLog.START]
    assert starts == [1, 2]
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 2


def test_events_are_on_disk_while_the_run_goes_on(tmp_path: Path) -> None:
    with Record(RunDir(tmp_path), started=0.0) as record:
        record.stepped(1, {"loss": 0.5}, progress(1))
        record.moved(progress(1))
        assert scalars(events(tmp_path), "loss") == [(1, 0.5)]


def test_several_observers_see_the_same(tmp_path: Path) -> None:
    runs = [RunDir(tmp_path / name) for name in "ab"]
    for run in runs:
        run.path.mkdir()
    with Record(runs[0], 0.0) as a, Record(runs[1], 0.0) as b:
        both = Together(a, b)
        both.stepped(1, {"loss": 0.5}, progress(1))
        both.moved(progress(1))
        both.report(Report("joined", "actor a joined"))
    for name in ("metrics.jsonl", "log.txt"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text() != ""


# The end


def ended(**changes: Any) -> dict[str, Any]:
    end = progress(
        100, seconds=12.5, contributions=1000, metrics={"loss": 0.25, "accuracy": 0.9361, "odd": math.nan}, **changes
    )
    return summary(end, Config("digits", seed=3), 1, "ab" * 32, Path("runs/digits-1"))


def test_a_summary_has_every_promised_field() -> None:
    assert json.loads(json_line(ended())) == {
        "job": "digits",
        "seed": 3,
        "actors": 2,
        "version": 100,
        "contributions": 1000,
        "seconds": 12.5,
        "rounds_per_second": 8.0,
        "steps": 0,
        "steps_per_second": 0.0,
        "metrics": {"loss": 0.25, "accuracy": 0.9361, "odd": None},
        "weights_sha256": "ab" * 32,
        "run_dir": str(Path("runs/digits-1")),
        "threads": 1,
        "left_out": [],
        "left_out_why": "",
    }
    assert "\n" not in json_line(ended())


def test_only_the_summary_of_a_virtual_run_says_that_its_time_was_virtual() -> None:
    assert "virtual" not in ended()
    assert ended(virtual=True)["virtual"] is True


def test_threads_that_get_in_each_others_way_are_told_of() -> None:
    assert crowded(actors=8, threads=1, cores=2) == ""  # there is no less
    assert crowded(actors=2, threads=4, cores=8) == ""
    assert crowded(actors=0, threads=8, cores=2) == ""
    assert crowded(actors=2, threads=4, cores=2).startswith("2 actors of 4 threads each on 2 cores")


def test_the_summary_in_the_folder_is_the_same_and_may_be_renewed(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.write_summary({"version": 1})
    run.write_summary(ended())
    assert json.loads(run.summary_file.read_text()) == json.loads(json_line(ended()))
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_the_closing_words_tell_the_result_its_place_and_three_things_to_try() -> None:
    told = closing(ended()).splitlines()
    assert told[0] == "digits: held-out accuracy 0.9361, training loss 0.25 after 100 rounds in 0:12 (8.0 rounds/s)."
    assert "runs/digits-1" in told[1]
    commands = [line.strip() for line in told if line.startswith("  shoal ")]
    assert [command.split()[1] for command in commands] == ["evaluate", "simulate", "export"]
    assert "--seed 4" in commands[1]


def test_the_closing_words_of_a_reinforcement_run_speak_of_episodes_and_steps() -> None:
    end = progress(9, seconds=10.0, steps=300_000, metrics={"return_mean": 487.25})
    told = closing(summary(end, Config("cartpole"), 1, "", "runs/a b"))
    assert "mean return of the last 100 episodes 487.2 after 300,000 environment steps in 0:10 (30,000.0 steps/s)." in told
    assert "shoal evaluate 'runs/a b'" in told
    assert "fresh episodes" in told


# Whose folder it is

BOMB = "raise AssertionError('the code of a stranger was run')"
COMMANDS = (["resume"], ["evaluate"], ["export", "--to", "w.safetensors"])


def refused(folder: Path) -> str:
    """The one line that each command gives, which would import the job of a folder."""
    said = set()
    for command in COMMANDS:
        with pytest.raises(UserError) as error:
            ACTS[command[0]](parser(ACTS).parse_args([command[0], str(folder), *command[1:]]))
        said.add(one_line(error))
    [line] = said
    return line


@pytest.mark.parametrize("where", ["home", "elsewhere", "run"])
@pytest.mark.parametrize("name", ["{}/theirs.py:job", "theirs:job", "gymnasium:theirs:Env-v0"])
def test_a_folder_without_this_users_signature_runs_no_code_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, name: str
) -> None:
    folder = tmp_path / "run"
    for each in (tmp_path / "home", tmp_path / "elsewhere", folder):
        each.mkdir()
    (tmp_path / where / "theirs.py").write_text(BOMB)
    monkeypatch.chdir(tmp_path / where)
    (folder / "config.toml").write_text(Config(name.format(tmp_path / where)).dumps())
    assert "has no signature" in refused(folder)
    assert trusted(folder, True).dir.path == folder


def signed(folder: Path, job: str) -> RunDir:
    folder.mkdir()
    run = RunDir(folder)
    run.write_config(Config(job))
    sign(run, job)
    return run


def test_a_folder_of_ones_own_needs_no_trust_where_it_is_moved_and_wherever_its_job_lies(tmp_path: Path) -> None:
    run = signed(tmp_path / "mine", f"{tmp_path}/far/away.py:job")
    assert trusted(run.path, False).dir.path == run.path
    run.path.rename(tmp_path / "moved")
    assert trusted(tmp_path / "moved", False).dir.path == tmp_path / "moved"
    KeyFolder().new("made-later")
    assert trusted(tmp_path / "moved", False)


def test_a_signature_holds_for_one_job_and_one_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = signed(tmp_path / "mine", "mine:job")
    run.extend(Config("theirs:job"))
    assert "another user's or machine's, or of another job" in refused(run.path)
    run.extend(Config("mine:job"))
    assert trusted(run.path, False)
    monkeypatch.setenv("SHOAL_KEYS", str(tmp_path / "another"))
    assert "cannot be checked" in refused(run.path)
    KeyFolder().secret()
    assert "another user's or machine's, or of another job" in refused(run.path)


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"0" * 64, "\N{SNOWMAN}".encode() * 30, b"0" * 1_000_000])
def test_a_damaged_signature_is_none(tmp_path: Path, damage: bytes) -> None:
    run = signed(tmp_path / "mine", "mine:job")
    run.signature_file.write_bytes(damage)
    assert "signature" in refused(run.path)


def test_the_secret_of_signatures_is_read_by_its_user_alone(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path / "keys")
    assert len(folder.secret()) == 32
    assert folder.secret() == folder.secret(make=False)
    [file] = [path for path in folder.path.iterdir() if path.is_file()]
    assert file.stat().st_mode & 0o777 == 0o600
    assert folder.names() == []  # it is no key pair
    file.chmod(0o644)
    with pytest.raises(UserError, match="can be read by others"):
        folder.secret()


@pytest.mark.parametrize("name", ["digits", "gymnasium:CartPole-v1", "inline:mine"])
def test_jobs_that_name_no_code_need_no_signature(tmp_path: Path, name: str) -> None:
    assert not signed(tmp_path / "run", name).signature_file.exists()
    assert trusted(tmp_path / "run", False)


def test_a_run_whose_folder_of_keys_cannot_be_used_goes_on_without_a_signature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys").chmod(0o755)
    monkeypatch.setenv("SHOAL_KEYS", str(tmp_path / "keys"))
    assert not signed(tmp_path / "run", "mine:job").signature_file.exists()


def test_the_commands_go_on_with_a_job_elsewhere_that_this_user_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.setattr("sys.path", [*sys.path])
    job = tmp_path / "jobs" / "far_job.py"
    job.write_text("from shoal.jobs.catalog import digits\n\njob = digits()\n")
    monkeypatch.chdir(tmp_path / "home")
    ran("simulate", job, "rounds=1", "eval_every=0", "--actors", 0, "--run-dir", "run", "--quiet")
    assert ran("evaluate", "run", "--json").result["version"] == 1
    ran("export", "run", "--to", "w.safetensors")
    assert ran("resume", "run", "rounds=2", "--json").result["version"] == 2
    assert ran("evaluate", "run", "--json").result["version"] == 2
