"""The trials of a sweep under way: processes that do them, and the loop that hears what they say.

The one idea: every line here starts, sends, hears or writes. What begins and what goes on is decided by the desk, and which
settings are tried by Optuna; the loop is the only one that asks either.
"""

from __future__ import annotations

import selectors
import socket
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shoal.actors.pool import Pool
from shoal.jobs.settings import nearest
from shoal.protocol.errors import UserError
from shoal.runs.metrics import ordered
from shoal.sweeps.arms import Goal
from shoal.sweeps.desk import Answer, Begin, Desk, Over, Trial, facts
from shoal.sweeps.folder import Record, SweepDir
from shoal.sweeps.line import GoneError, Line
from shoal.sweeps.population import Population
from shoal.sweeps.study import Study
from shoal.sweeps.table import which

LOOK = 0.2  # seconds between two looks at the clock and at a reason to stop
FIRST = 3  # trials that all failed, before any other end, after which a sweep ends: the fault is not in the settings
STILLBORN = 3  # processes a place that may end before they have said hello


@dataclass
class Race:
    """A sweep under way. until: clock's time at which no further arm begins. tell: called with each trial that is over."""

    desk: Desk
    study: Study
    goal: Goal
    folder: SweepDir
    pool: Pool
    door: socket.socket
    address: str
    runs: bool  # each trial is a run with a folder
    clock: Callable[[], float]
    until: float
    tell: Callable[[Trial | None], object]
    population: Population | None = None
    end: str = ""  # the setting that ends a run, for a population
    lines: dict[int, Line] = field(default_factory=dict)  # process id -> its line
    at: dict[int, Trial] = field(default_factory=dict)  # process id -> what it does
    said: dict[int, dict[str, Any]] = field(default_factory=dict)  # trial -> what it said at its end, and its attributes
    due: deque[Trial] = field(default_factory=deque)  # have a place, and no process yet
    starting: int = 0
    news: bool = False  # arms are over whose end the desk has not acted on
    stillborn: int = 0
    ends: int = 0  # trials that are over; failed: those of them that failed
    failed: int = 0

    def live(self, interrupted: Callable[[], str]) -> str:
        """Run the sweep until no trial is left. Returns "done", or why the sweep stopped before. Raises UserError if it cannot
        go on."""
        trials, arms = Record(self.folder.trials_file), Record(self.folder.arms_file, lasting=False)
        try:
            with selectors.DefaultSelector() as eyes:
                eyes.register(self.door, selectors.EVENT_READ)
                eyes.register(self.pool, selectors.EVENT_READ)
                return self._loop(eyes, trials, arms, interrupted)
        finally:
            for line in self.lines.values():
                line.close()
            trials.close()
            arms.close()

    def _loop(self, eyes: selectors.BaseSelector, trials: Record, arms: Record, interrupted: Callable[[], str]) -> str:
        self.pool.ready(interrupted)
        while True:
            deeds = self.desk.turn()
            self.news = self.population is not None and any(isinstance(deed, Over) for deed in deeds)  # a generation may begin
            for deed in deeds:
                match deed:
                    case Begin(trial):
                        self.due.append(trial)
                    case Answer(trial, goes_on):
                        self._say(next(pid for pid, its in self.at.items() if its is trial), {"go": goes_on})
                    case Over(arm, state, value):
                        self._over(arms, arm, state, value)
            self._give(trials)
            if self.desk.done:
                return "done" if not self.desk.closed else "stopped at its timeout"
            if reason := interrupted():
                return reason
            if self.clock() > self.until:
                self.desk.closed = True
            for key, _ in eyes.select(LOOK if not self.news else 0.0):
                if key.fileobj is self.door:
                    self._welcome(eyes)
                elif isinstance(key.fileobj, Line):
                    self._hear(eyes, key.fileobj, trials)
            self._bury(eyes, trials)
            self.tell(None)

    def _give(self, trials: Record) -> None:
        """Give trials to processes that have nothing to do; start a process for each that finds none."""
        idle = [pid for pid in self.lines if pid not in self.at]
        while self.due and idle:
            trial, pid = self.due.popleft(), idle.pop(0)
            self.at[pid] = trial
            self.said[trial.number] = {}
            trials.write(self.row(trial))
            params = self.study.params(trial.arm)
            about = {"trial": trial.number, "arm": trial.arm, "seed": trial.seed, "metric": self.goal.metric}
            about |= {"params": params, "waits": self.desk.judge is not None}
            self._say(pid, about | {"folder": str(self.folder.trial(trial.number).path), **self._origin(trial)})
        if (more := len(self.due) - self.starting) > 0:
            self.starting += more
            self.pool.grow(more, {"address": self.address})

    def _origin(self, trial: Trial) -> dict[str, Any]:
        """Return the beginning and the end of a population's trial, for its process."""
        if self.population is None:
            return {}
        end = {self.end: self.population.until(trial.arm)}
        if (number := self._parent(trial)) is None:
            return {"end": end}
        return {"end": end, "from": str(self.folder.trial(number).path)}

    def _parent(self, trial: Trial) -> int | None:
        """The trial of the same seed from whose snapshot this one begins."""
        if self.population is None or (arm := self.population.parent(trial.arm)) is None:
            return None
        return next(other.number for other in self.desk.of(arm) if other.seed == trial.seed)

    def _say(self, pid: int, message: Mapping[str, Any]) -> None:
        try:
            self.lines[pid].say(message)
        except GoneError:
            return  # the pool tells soon how it ended

    def _welcome(self, eyes: selectors.BaseSelector) -> None:
        own, _ = self.door.accept()
        line = Line(own)
        try:
            self.lines[int(line.hear()["pid"])] = line
        except GoneError:
            line.close()
            return
        self.starting = max(0, self.starting - 1)
        self.stillborn = 0
        eyes.register(line, selectors.EVENT_READ)

    def _hear(self, eyes: selectors.BaseSelector, line: Line, trials: Record) -> None:
        pid = next(pid for pid, its in self.lines.items() if its is line)
        try:
            heard = line.heard()
        except GoneError:
            eyes.unregister(line)  # the pool tells how the process ended
            return
        for message in heard:
            trial = self.at[pid]
            match message:
                case {"said": _, "step": step, "value": value}:
                    self.desk.said(trial.number, step, value)
                case {"suggest": _, "name": name, "distribution": distribution}:
                    self._say(pid, self._suggested(trial, name, distribution))
                    trials.write(self.row(trial))
                case {"attribute": _, "key": key, "value": value}:
                    self.study.attribute(trial.arm, key, value)
                    self.said[trial.number].setdefault("attributes", {})[key] = value
                case {"ended": _, "state": state}:
                    del self.at[pid]
                    self._ended(trial, str(state), message, trials)

    def _suggested(self, trial: Trial, name: str, distribution: str) -> dict[str, Any]:
        try:
            return {"value": self.study.suggest(trial.arm, name, distribution)}
        except UserError as wrong:
            return {"wrong": str(wrong)}

    def _ended(self, trial: Trial, state: str, message: Mapping[str, Any], trials: Record) -> None:
        self.desk.ended(trial.number, state, message.get("value"), str(message.get("why", "")))
        self.said[trial.number] |= {n: message[n] for n in ("version", "seconds", "weights_sha256", "began") if n in message}
        if "step" in message:
            self.said[trial.number]["step"] = message["step"]
        self._written(trial, trials)
        if (has := message.get("metrics")) is not None:
            names = ordered(has)
            raise UserError(f"goal={self.goal}: no run has a metric {self.goal.metric!r}: {nearest(self.goal.metric, names)}")

    def _written(self, trial: Trial, trials: Record) -> None:
        trials.write(self.row(trial))
        self.tell(trial)
        self.ends += 1
        self.failed += trial.state == "failed"
        if self.failed == self.ends >= min(FIRST, self.desk.arms * len(self.desk.seeds)):
            last = f"{which(self.row(trial))}: {trial.why}"
            raise UserError(f"all of the first {self.ends} trials failed, the last one so: {last}")

    def _bury(self, eyes: selectors.BaseSelector, trials: Record) -> None:
        """Take note of processes that have ended: a trial of one is tried again."""
        for pid, status in self.pool.ended().items():
            how = f"was ended by signal {-status}" if status < 0 else f"ended with code {status}"
            if (line := self.lines.pop(pid, None)) is None:
                self.starting, self.stillborn = max(0, self.starting - 1), self.stillborn + 1
                if self.stillborn > STILLBORN * self.desk.places:
                    raise UserError(f"processes for trials end before they begin; the last one {how}")
                continue
            if line in (key.fileobj for key in eyes.get_map().values()):
                eyes.unregister(line)
            line.close()
            if (trial := self.at.pop(pid, None)) is not None and not self.desk.died(trial.number, how):
                self._written(trial, trials)
        if self.pool.fault:
            raise UserError(f"{self.pool.fault}; go on with: shoal resume {self.folder.path}")

    def _over(self, arms: Record, arm: int, state: str, value: float | None) -> None:
        params = self.study.params(arm)
        self.study.tell(arm, state, value)
        if self.population is not None:
            self.population.over(arm, params, value)
        arms.write({"arm": arm, "state": state, "value": value, "params": params, **self.study.state(arm)})

    def row(self, trial: Trial) -> dict[str, Any]:
        """A trial as a line of trials.jsonl."""
        row = {**facts(trial), "params": self.study.params(trial.arm), **self.said.get(trial.number, {})}
        if self.population is not None:
            row["from"] = self._parent(trial)
        if self.runs:
            row["run"] = str(self.folder.trial(trial.number).path.relative_to(self.folder.path))
        elif trial.over:
            row["values"] = [[step, value] for step, value in sorted(trial.values.items())]
        return row
