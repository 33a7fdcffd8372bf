"""The state of a run for a monitor: status.json, which the coordinator writes, and `shoal status`, which reads it, or asks the
coordinator at an address.

The one idea: the file says when it was written and when the run last moved, so a reader sees a coordinator that is gone or
stands still without asking it. An answer to Ask says the same.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from shoal.coordinator.reports import Progress, Report
from shoal.protocol.door import ClientKeys
from shoal.protocol.errors import UserError, printable
from shoal.protocol.link import Line
from shoal.protocol.messages import PROTOCOL, Ask, Beat, Envelope, Refused, State
from shoal.protocol.work import Metrics
from shoal.runs.rundir import RunDir, finite, replaced

EVERY = 1.0  # seconds between two writes, at least
SILENT = 10.0  # seconds since the last write after which the coordinator counts as gone
ANSWER = 5.0  # seconds that a coordinator has to answer
AGAIN = 1.0  # seconds until it is asked again
SAID = ("state", "pid", "written", "stepped", "version", "goal", "done", "steps", "actors", "waiting_for")
"""The answer of `shoal status`. status.json holds more, for `shoal watch`."""


class Status:
    """An observer that writes status.json, atomically, at most once a second. now: Unix time, in seconds. roll: gives what the
    file says of actors, lags and tasks (coordinator/telling.py); nothing until the run has begun."""

    def __init__(self, run: RunDir, now: Callable[[], float] = time.time) -> None:
        self.file, self.now = run.status_file, now
        self.written = 0.0
        self.last: Progress | None = None
        self.stepped_at = now()
        self.roll: Callable[[], dict[str, Any]] = dict

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
        rates = {"contributions_per_second": progress.contributions_per_second, "steps_per_second": progress.steps_per_second}
        came = {"seconds": progress.seconds, "contributions": progress.contributions, "left_out": len(progress.left_out)}
        more = {**came, **rates, "lag": progress.lag, "shares": progress.shares, "metrics": progress.metrics}
        found = {**finite({**state_of, **place, **waits, **more}), "roll": self.roll()}
        try:
            replaced(self.file, json.dumps(found, allow_nan=False) + "\n")
        except OSError:  # a full disk: the file grows old, and a reader says so
            return


def status(run_dir: Path | str, within: float, now: float) -> tuple[bool, dict[str, Any]]:
    """Return whether a run is alive and moving, and its own figures: those of status.json that SAID names, with
    `seconds_since_step`, `seconds_since_written` and `why` ("" if it is well).

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
    why = _ill(found["state"], still, within)
    if found["state"] == "running" and silent > SILENT:
        why = f"the coordinator (pid {found['pid']}) has written nothing for {silent:.0f} s"
    times = {"seconds_since_step": round(still, 1), "seconds_since_written": round(silent, 1)}
    said = {name: found[name] for name in SAID if name in found}
    return not why, {"run_dir": str(run.path), **said, **times, "why": why}


def asked(
    address: str,
    keys: ClientKeys | None,
    within: float,
    now: float,
    clock: Callable[[], float] = time.monotonic,
    patience: float = ANSWER,
) -> tuple[bool, dict[str, Any]]:
    """Return the same as `status`, of the run whose coordinator answers at this address; `address` and `run`, the run's name,
    are in the place of `run_dir`. A coordinator that does not answer within `patience` seconds of `clock` is not well.

    keys: of this user and of the coordinator, needed if the coordinator asks for keys. now: Unix time. Raises UserError.
    """
    answer, why = _answer(address, keys, clock, patience)
    if answer is None:
        return False, {"address": address, "state": "no answer", "why": why}
    state = printable(answer.state, 200)
    why = _ill(state, answer.still, within)
    of = {"address": address, "run": printable(answer.run, 200), "state": state, "pid": answer.pid}
    times = {"written": now, "stepped": now - answer.still, "seconds_since_step": round(answer.still, 1)}
    place = {"version": answer.version, "goal": printable(answer.goal, 200), "done": answer.done, "steps": answer.steps}
    waits = {"actors": answer.actors, "waiting_for": [printable(line, 200) for line in answer.waiting_for[:20]]}
    return not why, {**of, **times, "seconds_since_written": 0.0, **place, **waits, "why": why}


def _answer(address: str, keys: ClientKeys | None, clock: Callable[[], float], patience: float) -> tuple[State | None, str]:
    """A coordinator's answer; None with the reason if there was none."""
    session, until, ask_at = os.urandom(8), clock() + patience, clock()
    why = f"no answer within {patience:g} s: no coordinator is there, or no way leads to it"
    with closing(Line(address, keys, clock)) as line:
        first = True
        while (now := clock()) < until:
            if now >= ask_at:
                ask_at = now + AGAIN
                line.send(Envelope(session, 0, Ask(PROTOCOL)))
                if not first:  # a coordinator that does not know Ask refuses a Beat of a stranger
                    line.send(Envelope(session, 0, Beat(0)))
                first = False
            line.wait(min(until, ask_at) - now)
            for arrival in line.drain():
                match arrival.envelope.message if arrival.envelope else None:
                    case State() as state:
                        return state, ""
                    case Refused():
                        why = "a coordinator of an older version is there and tells no state: type shoal status RUN_DIR there"
                    case None if arrival.kind == "access":
                        why = arrival.fault.removesuffix("; trying on")
    return None, why


def _ill(state: str, still: float, within: float) -> str:
    """Return why a run is not well; "" if it is. still: seconds since its last step."""
    if state != "running":
        return f"ended: {state}"
    return f"no step for {still:.0f} s, of at most {within:g}" if still > within else ""


def told(found: dict[str, Any]) -> str:
    """Return the findings of `status`, in lines for a person."""
    lines = [f"{found.get('run_dir') or found['address']}: {found['why'] or 'alive'}"]
    if "version" in found:
        lines += [f"version {found['version']} ({found['goal']}), {found['actors']} actors"]
        lines += [f"last step {found['seconds_since_step']:.0f} s ago"]
    return "\n".join(lines + [f"waiting for {one}" for one in found.get("waiting_for", ())])
