"""Signs of life of real processes: one that computes with Python's lock held, and one that is stopped.

The one idea: nothing here waits for a clock. A client reads from a pipe with the lock held until the run has said that it is
busy, and the run ends only because a stopped process is noticed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import shoal
from shoal.coordinator.reports import Progress, Report
from shoal.jobs.catalog import find
from shoal.runs import launch
from shoal.runs.parts import NEVER, bounds_of
from shoal.runs.rundir import Config, RunDir


class Ear:
    """An observer that keeps the reports, and may act on one."""

    def __init__(self, act: Callable[[Report], Any]) -> None:
        self.reports: list[Report] = []
        self.act = act

    def stepped(self, version: int, metrics: Any, progress: Progress) -> None: ...

    def moved(self, progress: Progress) -> None: ...

    def report(self, report: Report) -> None:
        self.reports.append(report)
        self.act(report)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def bounded(monkeypatch: pytest.MonkeyPatch, **bounds: float) -> None:
    before = launch.bounds_of
    monkeypatch.setattr(launch, "bounds_of", lambda options: replace(before(options), **bounds))


def job(once: Callable[[], Any]) -> shoal.Job:
    """A job of one client, which calls `once` in its first actor."""
    here, (read, write) = os.getpid(), os.pipe()
    os.set_blocking(read, False)
    os.write(write, b".")

    def loss(logits: Any, y: Any) -> Any:
        try:
            first = os.getpid() != here and os.read(read, 1)
        except BlockingIOError:
            first = False
        if first:
            once()
        return (logits**2).mean()

    share = (np.ones((4, 8), np.float32), np.arange(4))
    return shoal.Federated(lambda: nn.Linear(8, 5), [share], loss, clients=1, cohort=1, rounds=1, local_epochs=1, name="alive")


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_a_call_that_holds_pythons_lock_for_longer_than_patience_is_not_taken_for_death(
    monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    bounded(monkeypatch, patience=0.5, quiet=1.0)
    out, into = os.pipe()

    def locked() -> None:
        ctypes.PyDLL(None).read(out, ctypes.create_string_buffer(1), 1)  # PyDLL keeps Python's lock

    heard: list[str] = []

    def busy(report: Report) -> None:
        if "its interpreter is busy in one call" in report.text:
            heard.append(report.text)
            if len(heard) == 4:  # for longer than a connection may be silent
                os.write(into, b".")

    ear = Ear(busy)
    run = shoal.run(job(locked), actors=1, observers=[ear], show=False, transport=transport)
    assert run.reason == "done"
    assert {report.kind for report in ear.reports} & {"lost", "crew", "late", "silent", "away"} == set()


def test_a_process_that_is_stopped_is_noticed_and_another_does_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    bounded(monkeypatch, patience=1e6)  # only a connection that is lost can tell
    ear = Ear(lambda report: None)
    run = shoal.run(job(lambda: os.kill(os.getpid(), signal.SIGSTOP)), actors=2, observers=[ear], show=False)
    assert run.reason == "done"
    assert [
        report.text for report in ear.reports if report.kind == "lost" and "lost its connection in task (0, 0)" in report.text
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the seconds since data came over a connection")
def test_a_process_that_is_stopped_is_noticed_over_tcp_and_goes_on_with_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    bounded(monkeypatch, patience=1e6)
    stopped: list[int] = []
    out, into = os.pipe()

    def stop() -> None:
        os.write(into, os.getpid().to_bytes(8, "little"))
        os.kill(os.getpid(), signal.SIGSTOP)

    def go_on(report: Report) -> None:
        if report.kind == "silent":
            stopped.append(int.from_bytes(os.read(out, 8), "little"))
            os.kill(stopped[-1], signal.SIGCONT)

    ear = Ear(go_on)
    run = shoal.run(job(stop), actors=1, observers=[ear], show=False, transport="tcp")
    assert (run.reason, len(stopped)) == ("done", 1)
    assert {report.kind for report in ear.reports} & {"lost", "crew", "late", "away"} == set()
    [told] = [report.text for report in ear.reports if report.kind == "silent"]
    assert "its process is stopped, or its machine or link is down" in told


def test_in_the_plain_loop_the_actor_is_not_given_up_while_the_learner_works(tmp_path: Path) -> None:
    job, run = find("cartpole"), RunDir(tmp_path)
    plain, *others = (
        bounds_of(launch.Launch(job, Config("cartpole", actors=actors), run, bind))
        for actors, bind in ((0, ""), (1, ""), (0, "tcp://127.0.0.1:5555"))
    )
    assert (plain.patience, plain.hush) == (NEVER, NEVER)
    assert [(each.patience, each.hush) for each in others] == [(10.0, 2.0)] * 2
