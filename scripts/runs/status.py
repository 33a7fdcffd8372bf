"""The state of a run for a monitor: status.json, which the coordinator writes, and `shoal status`, which reads it.

The one idea: the file says when it was written and when the run last moved, so a reader sees a coordinator that is gone or
stands still without asking it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shoal.coordinator.reports import Progress, Report
from shoal.protocol.errors import UserError
from shoal.protocol.work import Metrics
from shoal.runs.rundir import RunDir, finite, replaced

EVERY = 1.0  # seconds between two writes, at least
SILENT = 10.0  # seconds since the last write after which the coordinator counts as gone


class Status:
    """An observer that writes status.json, atomically, at most once a second. now: Unix time, in seconds."""

    def __init__(self, run: RunDir, now: Callable[[], float] = time.time) -> None:
        self.file, self.now = run.status_file, now
        self.written = 0.0
        self.last: Progress | None = None
        self.stepped_at = now()

    def stepped(self, version: int, metrics: Metrics, progress: Progress) -> None:
        self.stepped_at = self.now()
        self.moved(progress)

    def moved(self, progress: Progress) -> None:
        self.last = progress
        if self.now() - self.written >= EVERY:
            self._write("running")

    def report(self, report: Report) -> None:
        pass

    def ended(self, reason: str) -> None:
        self._write(reason)

    def _write(self, state: str) -> None:
        if (progress := self.last) is None:
            return
        self.written = self.now()
        place = {"version": progress.version, "goal": progress.goal, "done": progress.done, "steps": progress.steps}
        state_of = {"state": state, "pid": os.getpid(), "written": self.written, "stepped": self.stepped_at}
        waits = {"actors": progress.actors, "waiting_for": list(progress.waiting_for)}
        try:
            replaced(self.file, json.dumps(finite({**state_of, **place, **waits}), allow_nan=False) + "\n")
        except OSError:  # a full disk: the file grows old, and a reader says so
            return


def status(run_dir: Path | str, within: float, now: float) -> tuple[bool, dict[str, Any]]:
    """Whether a run is alive and moving, and what it says of itself: the content of status.json, with `seconds_since_step`,
    `seconds_since_written` and `why` ("" if it is well).

    within: seconds without a step after which a run counts as standing still. now: Unix time. Raises UserError if there is no
    run.
    """
    run = RunDir.open(run_dir)
    try:
        found: dict[str, Any] = json.loads(run.status_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False, {"run_dir": str(run.path), "state": "not started", "why": "the run has written no status yet"}
    except ValueError as broken:
        raise UserError(f"{run.status_file} is not as a coordinator wrote it ({broken}); the next write mends it") from None
    still, silent = now - found["stepped"], now - found["written"]
    why = ""
    if found["state"] != "running":
        why = f"ended: {found['state']}"
    elif silent > SILENT:
        why = f"the coordinator (pid {found['pid']}) has written nothing for {silent:.0f} s"
    elif still > within:
        why = f"no step for {still:.0f} s, of at most {within:g}"
    times = {"seconds_since_step": round(still, 1), "seconds_since_written": round(silent, 1)}
    return not why, {"run_dir": str(run.path), **found, **times, "why": why}


def told(found: dict[str, Any]) -> str:
    """What `status` found, in lines for a person."""
    lines = [f"{found['run_dir']}: {found['why'] or 'alive'}"]
    if "version" in found:
        lines += [f"version {found['version']} ({found['goal']}), {found['actors']} actors"]
        lines += [f"last step {found['seconds_since_step']:.0f} s ago"]
    return "\n".join(lines + [f"waiting for {one}" for one in found.get("waiting_for", ())])
