"""Whole runs for a case: the same `launch` that `shoal simulate` calls, in a folder that is removed afterwards.

The one idea: a case measures from outside (the files of the run, and the times of its messages), never by a shortcut.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

from shoal.jobs.job import Job
from shoal.protocol.door import ServerKeys, server_keys
from shoal.protocol.keys import KeyFolder
from shoal.protocol.link import Arrival, Hub
from shoal.protocol.messages import Envelope
from shoal.runs import parts
from shoal.runs.launch import Launch, launch, ready
from shoal.runs.progress import Errors
from shoal.runs.rundir import Config, RunDir


@dataclass(frozen=True)
class Played:
    """A run that is over. rows: the lines of its metrics.jsonl."""

    run: RunDir
    rows: list[dict[str, Any]]
    summary: Mapping[str, Any]

    def pace(self, skip: int = 1) -> float:
        """Returns contributions of clients a second, from the `skip`th step to the last."""
        steps = self.steps[skip - 1 :]
        return float((steps[-1]["contributions"] - steps[0]["contributions"]) / (steps[-1]["seconds"] - steps[0]["seconds"]))

    def rounds(self, skip: int = 1) -> list[float]:
        """Returns seconds of each step after the `skip`th."""
        moments = [row["seconds"] for row in self.steps[skip - 1 :]]
        return [after - before for before, after in pairwise(moments)]

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The rows of steps, without the rows of evaluations."""
        first: dict[int, dict[str, Any]] = {}
        for row in self.rows:
            first.setdefault(row["version"], row)
        return list(first.values())


@contextmanager
def played(
    job: Job, *, actors: int, transport: str = "ipc", keys: bool = False, gateway: bool = False, device: str = "cpu"
) -> Iterator[Played]:
    """Runs the job to its end in this process, with forked actors, and yields the run. keys, gateway: as for actors of other
    machines, on a loopback port. Raises RuntimeError if the run fails.
    """
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        run = RunDir.create(job.name, datetime.now(), path=Path(folder) / "run")
        config = Config(job.name, job.seed, actors, transport, device, settings=job.plain())
        bind = "tcp://127.0.0.1:*" if keys or gateway else ""
        options = Launch(job, config, run, bind, keys=_keys(Path(folder)) if keys else None, gateway=gateway, named=False)
        with ready(options) as begun:
            end = launch(begun, Errors(sys.stderr))
        if end.failed:
            raise RuntimeError(f"the run failed: {end.reason}")
        yield Played(run, run.rows(), end.summary)


def _keys(folder: Path) -> ServerKeys:
    """Returns keys of a coordinator that lets in only its own actors."""
    own = KeyFolder(folder / "keys")
    own.new("bench")
    return server_keys(own, "bench")


@contextmanager
def simulated(job: str, *words: str) -> Iterator[Played]:
    """Yields a run of `shoal simulate JOB ...` in a process of its own. Raises CalledProcessError if the run fails."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        path = Path(folder) / "run"
        done = shoal("simulate", job, *words, "--quiet", "--json", "--run-dir", str(path))
        run = RunDir.open(path)
        yield Played(run, run.rows(), done)


def shoal(*words: str) -> dict[str, Any]:
    """Runs a `shoal` command that ends in a JSON line, and returns that line."""
    told = subprocess.run([sys.executable, "-m", "shoal", *words], stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(told.strip().splitlines()[-1])
    return found


@dataclass
class Trace:
    """The messages that came to the coordinator's socket. heard: monotonic seconds, and the message."""

    heard: list[tuple[float, Envelope]] = field(default_factory=list)

    def came(self, kind: type[Any]) -> list[tuple[float, Any]]:
        return [(at, envelope.message) for at, envelope in self.heard if isinstance(envelope.message, kind)]


@contextmanager
def traced() -> Iterator[Trace]:
    """Notes the time of each message in runs that begin inside the `with`. It costs a microsecond a message."""
    trace = Trace()

    class Noting(Hub):
        def drain(self) -> Iterator[Arrival]:
            for arrival in super().drain():
                if arrival.envelope is not None:
                    trace.heard.append((time.monotonic(), arrival.envelope))
                yield arrival

    with mock.patch.object(parts, "Hub", Noting):
        yield trace
