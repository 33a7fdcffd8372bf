"""A run whose disk has no room, or whose folder is gone: it waits with what it has, and says what is lost if it may not."""

from __future__ import annotations

import errno
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shoal
from shoal.aggregators.fedavg import FedAvgServer
from shoal.benchmarks.jobs import Still
from shoal.coordinator.checks import Inspector
from shoal.coordinator.deciding.bounds import Bounds, Goal
from shoal.coordinator.deciding.core import Core
from shoal.coordinator.deciding.events import Finish, Fold, Kept, Step, Stepped
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.coordinator.deciding.recovered import Recovered
from shoal.coordinator.keeping.disk import DiskTrouble
from shoal.coordinator.keeping.recording import Recording
from shoal.coordinator.keeping.store import Store, newest
from shoal.coordinator.learner import Broke, Intake, LearnerThread, Make
from shoal.coordinator.reports import Progress, Report
from shoal.coordinator.server import Outside, Server
from shoal.faults.patient import ended, wait_until
from shoal.faults.ramdisk import RamDisk
from shoal.protocol.layout import Bundle
from shoal.protocol.link import Arrival
from shoal.protocol.messages import Contribute
from shoal.protocol.work import Metrics, Task
from shoal.runs.running import RunError

ROOT = Path("run")
START = Bundle.pack({"w": np.zeros(5, np.float32)})
SMALL = {"rounds": 3, "clients": 3, "cohort": 2, "eval_every": 0}


def recording(disk: RamDisk, retain: int = 0) -> Recording:
    store = Store(ROOT, disk=disk)
    return Recording(
        store, None, Recovered(), payload=False, every=1e9, clock=lambda: 0.0, report=lambda text: None, retain=retain
    )


class Life:
    """A learner's thread that makes its last step on a disk without room."""

    def __init__(self, still: Still | None = None, given_up: Callable[[], object] = bool) -> None:
        self.disk, self.rung = RamDisk(), threading.Event()
        book = recording(self.disk)
        self.disk.fault = lambda call, path: errno.ENOSPC if call == "create" else 0
        self.learner = LearnerThread(
            still or FedAvgServer(START), Inspector(), time.monotonic, recording=book, wake=self.rung.set, given_up=given_up
        )
        message = Contribute((0, 0), 0, 0, 1.0, START.layout.digest, False, {}, {}, 0.0, 0.0)
        intake = Intake(Fold(Task(0, 0, (0,)), (0,), message, 0), START)
        self.learner.put([*([] if still else [intake]), Make(Step(1, 0, 0, last=True))])

    def until(self, kind: type) -> list[Any]:
        while not any(isinstance(one, kind) for one in list(self.learner.outcomes)):
            assert self.rung.wait(30.0)
            self.rung.clear()
        return list(self.learner.outcomes)


def test_the_last_version_is_told_when_its_snapshot_has_room_and_no_earlier() -> None:
    life = Life()
    told = life.until(Report)
    assert "No space left" in next(one.text for one in told if isinstance(one, Report))
    assert not any(isinstance(one, Stepped | Kept) for one in told)
    life.disk.fault = lambda call, path: 0
    life.learner.finish()
    assert [type(one) for one in life.learner.outcomes if isinstance(one, Stepped | Kept)] == [Kept, Stepped]
    found = newest(ROOT, pytest.fail, life.disk)
    assert found is not None
    assert found.version == 1


def test_a_wait_for_room_ends_when_the_run_is_given_up_and_nothing_is_told_as_made() -> None:
    life = Life(given_up=lambda: True)
    told = life.until(Broke)
    life.learner.finish()
    assert isinstance(told[-1].error, DiskTrouble)
    assert not any(isinstance(one, Stepped | Kept) for one in life.learner.outcomes)


class Nobody:
    """A wire that leads nowhere."""

    address, inline = "nowhere", 0

    def say(self, *_: object) -> str:
        return ""

    def flush(self) -> list[tuple[bytes, str]]:
        return []

    def drain(self) -> Iterator[Arrival]:
        return iter(())

    def wait(self, seconds: float) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_run_that_is_over_tells_that_its_learner_waits_for_room_before_it_waits(tmp_path: Path) -> None:
    life = Life(Still(5))

    class Making:
        """An observer that makes room when it is told that there is none."""

        def __init__(self) -> None:
            self.told: list[str] = []

        def stepped(self, version: int, metrics: Metrics, progress: Progress) -> None:
            pass

        def moved(self, progress: Progress) -> None:
            pass

        def report(self, report: Report) -> None:
            if report.kind == "disk":
                self.told.append(report.text)
                life.disk.fault = lambda call, path: 0

    core = Core(Rounds(3), Goal(), Bounds(), now=time.monotonic())
    alone = Outside(lambda: "all actors have ended")  # the learner, whom no person told to give up, waits on
    layouts, seen = [START.layout], Making()
    server = Server(
        core,
        Nobody(),
        life.learner,
        seen,
        run="run",
        host="",
        welcome=b"",
        layouts=layouts,
        clock=time.monotonic,
        outside=alone,
    )
    server.finished = Finish("all actors have ended", False)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    thread.join(30.0)
    assert not thread.is_alive()
    assert "until there is room; Ctrl-C ends the wait" in seen.told[0]


class Vanishing:
    """Removes the run's folder after the first step. back: makes it again when the run waits."""

    def __init__(self, folder: Path, back: Callable[[], None]) -> None:
        self.folder, self.back = folder, back
        self.reports: list[Report] = []

    def stepped(self, version: int, metrics: Metrics, progress: Progress) -> None:
        if self.folder.exists() and version == 1:
            shutil.rmtree(self.folder)

    def moved(self, progress: Progress) -> None:
        pass

    def report(self, report: Report) -> None:
        self.reports.append(report)
        if report.kind == "disk" and "until there is room" in report.text:
            self.back()


@pytest.mark.parametrize("actors", [0, 1])
def test_a_folder_that_is_gone_is_waited_for_and_gets_the_last_version(tmp_path: Path, actors: int) -> None:
    folder = tmp_path / "run"
    seen = Vanishing(folder, lambda: folder.mkdir(exist_ok=True))
    run = shoal.run("digits", actors=actors, settings=SMALL, folder=folder, observers=[seen])
    assert run.reason == "done"
    found = newest(folder, pytest.fail)
    assert found is not None
    assert found.version == 3
    assert any(one.kind == "disk" and "No such file" in one.text for one in seen.reports)


def test_what_is_lost_with_a_run_that_is_stopped_without_room_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    seen = Vanishing(folder, lambda: started.stop("enough"))
    started = shoal.start("digits", actors=1, settings=SMALL, folder=folder, observers=[seen])
    with pytest.raises(RunError, match=r"No such file.*version.* no snapshot, and their weights are lost: shoal resume"):
        started.wait()
    assert not folder.exists()


def test_ctrl_c_without_the_folder_gives_one_line_and_exit_code_1(tmp_path: Path) -> None:
    words = ["simulate", "digits", "rounds=1000000", "eval_every=0", "--actors", "1", "--run-dir", "run", "--quiet"]
    with subprocess.Popen([sys.executable, "-m", "shoal", *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as child:
        rows = tmp_path / "run" / "metrics.jsonl"
        wait_until(lambda: child.poll() is not None or (rows.exists() and rows.stat().st_size), folder=tmp_path)
        assert child.poll() is None
        while (tmp_path / "run").exists():  # a snapshot may be written meanwhile
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
        child.send_signal(signal.SIGINT)
        ended(child)
        _, said = child.communicate()
    assert child.returncode == 1, said
    assert "Traceback" not in said
    assert "the run failed" in said
    assert "No such file" in said
