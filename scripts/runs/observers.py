"""The record that a run writes while it goes on: metrics.jsonl, TensorBoard events and log.txt.

The one idea: an observer is given all values and only writes; it reads the clock for log.txt alone. This module starts no
thread: a step costs one short write, and the TensorBoard events of many steps are made together.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from shoal.coordinator.reports import Before, Observer, Progress, Report
from shoal.protocol.work import Metrics
from shoal.runs.progress import indented, stamped
from shoal.runs.records import Records
from shoal.runs.rundir import RunDir, finite, replaced

WRITER = json.JSONEncoder(allow_nan=False)  # json.dumps makes one each time


class Together:
    """An observer that calls several observers, in order."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers

    def stepped(self, version: int, metrics: Metrics, progress: Progress) -> None:
        for observer in self.observers:
            observer.stepped(version, metrics, progress)

    def moved(self, progress: Progress) -> None:
        for observer in self.observers:
            observer.moved(progress)

    def report(self, report: Report) -> None:
        for observer in self.observers:
            observer.report(report)


class Record:
    """An observer that writes a run's history into its folder, a row a version. started: Unix time, in seconds, when
    progress.seconds was 0. evaluated: True for a version that is evaluated after its step: its row waits for that.

    A Record of a folder that has a history (`shoal resume`) appends to it. form: "text" or "json", of the lines of log.txt.
    now: Unix time, in seconds.
    """

    def __init__(
        self,
        run: RunDir,
        started: float,
        evaluated: Callable[[int], bool] = lambda version: False,
        form: str = "text",
        now: Callable[[], float] = time.time,
    ) -> None:
        self._run, self._evaluated, self._form, self._now = run, evaluated, form, now
        self._newest: dict[str, Any] = {"version": -1}
        self._begins = -1  # where the newest row begins in the file; -1: it waits
        self._left = True  # a row may lie in the file of waiting rows, maybe an earlier life's
        self.metrics, self.log = Lines(run.metrics_file), Lines(run.log_file)
        self.events = Events(run.path, started)

    def rewind(self, version: int) -> Before:
        """Go on from this version: what the history tells of later ones is taken out. Returns what the run had come to. A row
        that the last life left waiting for its evaluation waits again."""
        self.metrics.close()
        before = self._run.rewind(version)
        self.metrics = Lines(self._run.metrics_file)
        if row := self._run.waiting(version):
            self._newest = row
            before = Before(row["seconds"], row["contributions"])
        self.events.started -= before.seconds
        return before

    def stepped(self, version: int, metrics: Metrics, progress: Progress) -> None:
        with _as_far_as_possible():
            self._keep(row(version, metrics, progress), self._evaluated(version))
        with _as_far_as_possible():
            self.events.scalars(version, metrics, progress)

    def _keep(self, new: dict[str, Any], waits: bool) -> None:
        """Write a row; but if it waits, with its evaluation or with the next row."""
        if new["version"] == self._newest["version"]:
            # The counts stay those of the step: the next version's contributions may have come since.
            new = {**self._newest, "metrics": {**self._newest["metrics"], **new["metrics"]}}
            if self._begins >= 0:  # an evaluation after the last step of a run that was stopped
                self.metrics.cut(self._begins)
            waits = False
        else:
            self._write_waiting()
        self._newest, self._begins = new, -1
        if waits:  # if this process is killed, the next life writes it
            self._left = True
            replaced(self._run.waiting_file, WRITER.encode(new) + "\n")
        else:
            self._write_waiting()

    def _write_waiting(self) -> None:
        if self._begins < 0 <= self._newest["version"]:
            self._begins = self.metrics.ends
            self.metrics.add(WRITER.encode(self._newest))
            with _as_far_as_possible():
                self.metrics.write()  # people follow the file while it grows
                if self._left:
                    self._run.waiting_file.unlink(missing_ok=True)
                    self._left = False

    def moved(self, progress: Progress) -> None:
        with _as_far_as_possible():
            self.events.flush()

    def report(self, report: Report) -> None:
        with _as_far_as_possible():
            text = indented(report) if self._form == "json" else f"{report.level}: {report.kind}: {indented(report)}"
            self.log.add(stamped(self._now(), report.level, report.kind, text, self._form))
            self.log.write()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with _as_far_as_possible():
            self._write_waiting()
        for file in (self.metrics, self.log, self.events):
            with _as_far_as_possible():
                file.close()


def _as_far_as_possible() -> suppress:
    """A block that ignores OSError: if the disk is full, the run goes on, and lines wait in memory until there is room."""
    return suppress(OSError)


def row(version: int, metrics: Metrics, progress: Progress) -> dict[str, Any]:
    """Return a line of metrics.jsonl: seconds and environment steps of all the run's lives, lag as [min, mean, max]
    versions, and, if a lag is above 0, lags as pairs [versions, contributions]."""
    counters = {"version": version, "seconds": round(progress.seconds, 6), "steps": progress.steps}
    state = {"contributions": progress.contributions, "actors": progress.actors, "lag": progress.lag}
    lags = {"lags": progress.lags} if any(lag for lag, _ in progress.lags) else {}
    line: dict[str, Any] = finite({**counters, **state, **lags, "metrics": metrics})
    return line


class Events:
    """Scalars for TensorBoard: over environment steps if the run counts any, else over versions. Rates once a second.

    The file has TensorBoard's own form (a record is length, checksum, protobuf event). This class uses TensorBoard's protobuf
    classes directly: they import in 0.05 s beyond numpy. torch.utils.tensorboard takes 1.6 s, and TensorBoard's EventFileWriter
    loads all of TensorFlow if that is installed. Without TensorBoard no events are written.
    Values wait for `flush`, because an event that is made right after another costs less than one made alone.
    """

    def __init__(self, folder: Path, started: float) -> None:
        self.folder = folder
        self.started = started
        self.kinds = tensorboard()
        self.writer: Records | None = None
        self.due = 0.0
        self._waiting: list[tuple[int, float, Metrics]] = []  # step, seconds and values that are not written yet

    def scalars(self, version: int, metrics: Metrics, progress: Progress) -> None:
        if self.kinds is None:
            return
        if progress.seconds >= self.due:
            self.due = progress.seconds + 1.0
            metrics = {**metrics, **_rates(progress)}
        self.values(progress.steps or version, progress.seconds, metrics)

    def values(self, step: int, seconds: float, values: Metrics) -> None:
        """Take values at a step in, for the next `flush`. seconds: of the run. Without TensorBoard nothing is written."""
        if self.kinds is not None:
            self._waiting.append((step, seconds, values))

    def flush(self) -> None:
        """Write the values that wait. Those that the disk does not take are dropped. Raises OSError."""
        waiting, self._waiting = self._waiting, []
        if waiting and self.writer is None:
            self._open(*waiting[0][:2])
        for step, seconds, values in waiting:
            self._write(step, seconds, summary={"value": [{"tag": tag, "simple_value": each} for tag, each in values.items()]})
        if self.writer is not None:
            self.writer.flush()

    def close(self) -> None:
        """Write the values that wait, and close the file. Raises OSError."""
        try:
            self.flush()
        finally:
            if self.writer is not None:
                self.writer.close()

    def _open(self, step: int, seconds: float) -> None:
        """Open the file. Called at the first scalar, so that a run that never steps leaves no empty file. Its name sorts after
        the folder's other event files: TensorBoard reads them in the order of their names."""
        _, session_log = self.kinds
        number = len(list(self.folder.glob("events.out.tfevents.*")))
        self.writer = Records((self.folder / f"events.out.tfevents.{int(self.started):010d}.shoal.{number}").open("xb"))
        self._write(0, seconds, file_version="brain.Event:2")
        self._write(step, seconds, session_log={"status": session_log.START})  # drop a resumed run's older points from here on

    def _write(self, step: int, seconds: float, **what: Any) -> None:
        assert self.writer is not None
        self.writer.write(self.kinds[0](wall_time=self.started + seconds, step=step, **what).SerializeToString())


def tensorboard() -> Any:
    """TensorBoard's (Event, SessionLog); None without TensorBoard. Called when a run begins, because the import
    would delay the first step, or once before processes are forked, instead of in each of them."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    except ModuleNotFoundError:
        return None
    return Event, SessionLog


def _rates(progress: Progress) -> dict[str, float]:
    low, mean, high = progress.lag
    rates = {"rate/contributions": progress.contributions_per_second, "rate/steps": progress.steps_per_second}
    lags = {"lag/min": low, "lag/mean": mean, "lag/max": high, "actors": progress.actors}
    return {**rates, **lags, **{f"share/{name}": share for name, share in progress.shares.items()}}


class Lines:
    """A file that lines are added to, opened at its end. Lines for which the disk has no room wait here, in their order, until
    there is room. ends: bytes of the file, those that wait included.

    If a run that was killed left half a line, a line's end is added first.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b", buffering=0)
        self._written, self._waits = self._file.seek(0, os.SEEK_END), b""
        if self._written and os.pread(self._file.fileno(), 1, self._written - 1) != b"\n":
            self._waits = b"\n"

    @property
    def ends(self) -> int:
        return self._written + len(self._waits)

    def add(self, line: str) -> None:
        self._waits += line.encode("utf-8", errors="backslashreplace") + b"\n"

    def write(self) -> None:
        """Write the lines that wait, as far as there is room. Raises OSError."""
        while self._waits:
            many = self._file.write(self._waits) or 0
            self._written, self._waits = self._written + many, self._waits[many:]

    def cut(self, at: int) -> None:
        """Take out all bytes from `at` on. Raises OSError."""
        if at < self._written:
            self._file.truncate(at)
            self._written, self._waits = at, b""
        else:
            self._waits = self._waits[: at - self._written]

    def close(self) -> None:
        """Write the lines that wait, and close the file. Raises OSError."""
        try:
            self.write()
        finally:
            self._file.close()
