"""Reports, metrics and progress of a run, as a person sees them.

The one idea: the server says what happened, and this module makes the form in which a person sees it.
"""

from __future__ import annotations

import math
import os
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from shoal.coordinator.ages import Ages
from shoal.coordinator.causes import Causes, pairs
from shoal.coordinator.deciding.core import Core
from shoal.coordinator.deciding.patience import silent, waiting_for
from shoal.coordinator.deciding.roll import roll
from shoal.coordinator.deciding.stall import diagnosed
from shoal.coordinator.falling import Falling
from shoal.coordinator.learner import Learner
from shoal.coordinator.reports import Before, Observer, Progress, Report
from shoal.coordinator.tally import WINDOW, Rate, Tally
from shoal.protocol.errors import printable
from shoal.protocol.messages import State
from shoal.protocol.work import Metrics

LOOK = 0.25  # seconds, at least, between two looks of an observer
TRACES = 64  # tracebacks that are remembered, so that none is told twice in full
AGAIN = 60.0  # seconds between two diagnoses of a run that stands still, at least
CHATTY = 10  # reports of one kind that are shown in a second; more are counted, not shown


class Telling:
    """Tells an observer of one core and its learner. host: id of this machine (actors/loop.py). real: clock by which a person
    is told, if `clock`, the run's, is virtual; None: `clock`."""

    def __init__(
        self,
        core: Core,
        learner: Learner,
        observer: Observer,
        clock: Callable[[], float],
        before: Before,
        host: str = "",
        real: Callable[[], float] | None = None,
    ) -> None:
        self.core, self.learner, self.observer, self.clock, self.before = core, learner, observer, clock, before
        self.host, self.real, self.virtual = host, real or clock, real is not None
        self.tally, self.ages, self.causes, self.falling = Tally(), Ages(), Causes(), Falling()
        self.tally.load(before.figures)
        self.metrics: dict[str, float] = {}
        self.began = self._stepped_at = clock()
        self.evaluated = -1  # the newest version that was evaluated centrally in this life
        self._looked_at = 0.0
        self._stalled = self._diagnosed_at = -math.inf  # when the run had moved last before the last diagnosis, and its time
        self._seen, self._seen_since = Counter[str](), 0.0  # reports by kind, in the last second
        self._traces = deque[str](maxlen=TRACES)  # told in full
        self._rates = (Rate(), Rate())

    def report(self, report: Report) -> None:
        """Tell the observer, but no more than CHATTY reports of one kind a second, so that a flood of them drowns no other. A
        traceback that was told is not told again: a task that fails is tried three times, and fails alike."""
        if (now := self.real()) - self._seen_since > 1.0:
            self._seen, self._seen_since = Counter(), now
        self._seen[report.kind] += 1
        if self._seen[report.kind] <= CHATTY:
            self.observer.report(self._shortened(report))

    def _shortened(self, report: Report) -> Report:
        first, _, trace = report.text.partition("\n")
        if not trace:
            return report
        if trace in self._traces:
            return replace(report, text=f"{first} (traceback as before)")
        self._traces.append(trace)
        return report

    def flush(self) -> dict[str, float]:
        """The metrics since the last flush, of all contributions."""
        dropped = self.core.facts.ledger.counts.dropped
        drops = {"dropped_steps": float(dropped)} if dropped else {}
        return {**self.tally.flush(), **self.ages.flush(), **self.causes.flush(), **drops}

    def stepped(self, version: int, metrics: Metrics) -> None:
        """Tell the observer these metrics, which are new, of weights `version`."""
        self._stepped_at = self.clock()
        if "return_mean" in metrics and len(self.tally.returns) == WINDOW and self.falling.seen(version, self.tally.returns):
            self.report(Report("falling", self._fallen(), "warning"))
        self.metrics.update(metrics)
        self.observer.stepped(version, metrics, self.progress())

    def evaluation(self, version: int, metrics: Metrics) -> None:
        """Tell the observer a central evaluation of weights `version`."""
        self.evaluated = self.tally.played = version
        self.stepped(version, metrics)

    def _diagnose(self) -> None:
        """Tell a person, once for each time that the run stands still, what it stands in. The same culprit is not told again
        before it was AGAIN seconds ago."""
        facts, now = self.core.facts, self.clock()
        if facts.moved_at == self._stalled or now - self._diagnosed_at < AGAIN:
            return
        if (stall := diagnosed(facts, now, self.ages.last)) is not None:
            self._stalled, self._diagnosed_at = facts.moved_at, now
            stack = self.learner.stack() if stall.learner else stall.stack
            self.report(Report("stall", f"{stall.text}\n{stack}".rstrip(), "warning"))

    def _fallen(self) -> str:
        return self.falling.line(getattr(self.core.facts.plan, "max_lag", 0)) if self.falling.fallen else ""

    def look(self) -> None:
        """Tell the observer the progress, every LOOK seconds at most, however often this is called."""
        now = self.real()
        if now - self._looked_at >= LOOK:
            self._looked_at = now
            if not self.virtual:
                self._diagnose()
            self.observer.moved(self.progress())

    def state(self, run: str, state: str) -> State:
        """The answer to a monitor. run: name of the run; state: "running", or why it ended."""
        now = self.progress()
        waits = tuple(printable(line, 200) for line in now.waiting_for)
        still, goal = self.clock() - self._stepped_at, printable(now.goal, 200)
        about = (os.getpid(), now.version, goal, now.done, now.steps, now.actors, still)
        return State(printable(run, 200), printable(state, 200), *about, waits)

    def roll(self) -> dict[str, Any]:
        """The actors and tasks as `deciding.roll` tells them; and `lags`: pairs [lag, contributions], lags rising, of the last
        LAGS contributions. In a run with environments besides `batch_lags`: these pairs for the last step's trajectories; and
        `lag_causes`: cause -> pairs [versions, trajectories]."""
        told = {**roll(self.core.facts, self.clock(), self.host), "lags": pairs(Counter(self.tally.recent))}
        if not self.causes.batch:
            return told
        return {**told, "batch_lags": pairs(self.causes.batch), "lag_causes": self.causes.histograms()}

    def progress(self) -> Progress:
        now, core = self.clock(), self.core
        seconds = now - self.began
        clients = core.facts.ledger.counts.clients
        stands = now - core.facts.moved_at > core.facts.bounds.quiet
        return Progress(
            version=core.facts.version,
            goal=str(core.facts.goal),
            done=core.facts.goal.share(core.facts.version, core.facts.steps),
            seconds=self.before.seconds + seconds,
            contributions=self.before.contributions + clients,
            contributions_per_second=self._rates[0].at(now, clients),
            steps=core.facts.steps,
            steps_per_second=self._rates[1].at(now, core.facts.steps),
            actors=len(core.facts.roster),
            lag=(self.metrics.get("lag_min", 0.0), self.metrics.get("lag_mean", 0.0), self.metrics.get("lag_max", 0.0)),
            shares=self._shares(seconds),
            metrics=dict(self.metrics),
            waiting_for=tuple(waiting_for(core.facts) if stands else silent(core.facts)),
            left_out=core.facts.ledger.left_out,
            virtual=self.virtual,
            fallen=self._fallen(),
            lags=tuple(sorted(self.tally.batch.items())),
            played=self.tally.played,
        )

    def _shares(self, seconds: float) -> Mapping[str, float]:
        """Shares, 0 to 1, of the actors' time by activity, and of wall time that the learner spends on jobs."""
        trained, waited, seconds = self.tally.trained, self.tally.waited, max(1e-9, seconds)
        whole = max(seconds * len(self.core.facts.roster), trained + waited, 1e-9)  # actors that left have worked too
        shares = {"waiting": waited / whole, "training": trained / whole, "moving": 1.0 - (trained + waited) / whole}
        return {**shares, "stepping": self.learner.busy / seconds}
