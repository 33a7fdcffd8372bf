"""The desk of a sweep: which trial begins next, which goes on, and when an arm is over.

The one idea: facts come in by `said`, `ended` and `died`, and `turn` returns what to do. A desk knows no process, clock or
library of samplers: its driver hands in a function that asks for the next arm, and one that judges an arm at a step.

If trials can be pruned, each waits with its report until all living trials of its arm have reported; then the arm is judged
once, by the mean over its seeds, and all of them go on or end. A trial that waits needs no core, so others begin meanwhile.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

RETRIES = 2  # new tries of a trial whose process died


@dataclass(slots=True)
class Trial:
    """A trial as it stands. state: waiting (for a core), running, complete, pruned or failed. attempt: number of its processes
    so far. values: step -> value that it reported. asks: the step of a report that waits for its answer."""

    number: int
    arm: int
    seed: int
    state: str = "waiting"
    attempt: int = 0
    values: dict[int, float] = field(default_factory=dict)
    value: float | None = None
    asks: int | None = None
    why: str = ""

    @property
    def over(self) -> bool:
        return self.state in ("complete", "pruned", "failed")


@dataclass(frozen=True, slots=True)
class Begin:
    """Begin this trial in a process."""

    trial: Trial


@dataclass(frozen=True, slots=True)
class Answer:
    """Tell this trial to go on, or to end here because its arm is pruned."""

    trial: Trial
    goes_on: bool


@dataclass(frozen=True, slots=True)
class Over:
    """The news that all trials of an arm are over. state: complete, pruned or failed. value: the mean over its seeds, None
    unless it is complete."""

    arm: int
    state: str
    value: float | None


Deed: TypeAlias = Begin | Answer | Over
Ask: TypeAlias = Callable[[int], object]
Judge: TypeAlias = Callable[[int, int, float], bool]


class Desk:
    """The trials of a sweep.

    seeds: of each arm. places: trials that may compute at a time. arms: number of arms in all. ask: called with the number of
    an arm that begins. judge: (arm, step, mean over its seeds) -> True if the arm is to be pruned; None if none ever is.
    generation: the arms of so many begin only when all before them are over; 0: any arm may begin.
    """

    def __init__(
        self, seeds: Sequence[int], places: int, arms: float, ask: Ask, judge: Judge | None, generation: int = 0
    ) -> None:
        self.seeds, self.places, self.arms, self.ask, self.judge = seeds, places, arms, ask, judge
        self.generation = generation
        self.trials: dict[int, Trial] = {}
        self.asked = 0  # arms
        self.closed = False  # no further arm begins
        self._computing: set[int] = set()
        self._waiting: deque[int] = deque()
        self._judged: dict[tuple[int, int], bool] = {}
        self._open: set[int] = set()  # arms that are not over, as far as was told

    def known(self, arm: int, over: Mapping[int, Trial], told: bool) -> None:
        """Take up an arm of an earlier life. over: seed -> its trial, of those that were over. told: True if Over was returned
        for the arm."""
        self._opened(arm)
        for trial in self.of(arm):
            if trial.seed in over:
                self.trials[trial.number] = over[trial.seed]
        if told:
            self._open.discard(arm)

    def of(self, arm: int) -> list[Trial]:
        """The trials of an arm, in the order of its seeds."""
        first = arm * len(self.seeds)
        return [self.trials[number] for number in range(first, first + len(self.seeds))]

    @property
    def done(self) -> bool:
        """True if nothing is left to do: every trial is over, and no further arm begins."""
        return (self.closed or self.asked >= self.arms) and not self._open

    # What happened

    def said(self, number: int, step: int, value: float) -> None:
        """A trial reports a value, and waits for its answer if trials can be pruned."""
        trial = self.trials[number]
        trial.values[step] = value
        if self.judge is not None:
            trial.asks = step
            self._computing.discard(number)

    def ended(self, number: int, state: str, value: float | None = None, why: str = "") -> None:
        """A trial is over. state: complete, pruned or failed."""
        trial = self.trials[number]
        if state == "complete" and (value is None or not math.isfinite(value)):
            state, value, why = "failed", None, f"its value is {value}, which is no finite number"
        trial.state, trial.value, trial.why, trial.asks = state, value, why, None
        self._computing.discard(number)

    def died(self, number: int, how: str) -> bool:
        """The process of a trial is gone. Returns True if the trial is tried again."""
        trial = self.trials[number]
        self._computing.discard(number)
        trial.asks = None
        if trial.attempt > RETRIES:
            self.ended(number, "failed", why=f"its process {how}, {trial.attempt} times")
            return False
        trial.state = "waiting"
        self._waiting.appendleft(number)
        return True

    # What to do

    def turn(self) -> list[Deed]:
        """Return the orders that are to be carried out now."""
        return [*self._answers(), *self._begun(), *self._ends()]

    def _answers(self) -> list[Deed]:
        found: list[Deed] = []
        for arm in sorted(self._open) if self.judge is not None else ():
            living = [trial for trial in self.of(arm) if not trial.over]
            asking = [trial for trial in living if trial.asks is not None]
            if not asking:
                continue
            all_here = len(asking) == len(living)
            step = min(trial.asks for trial in asking if trial.asks is not None)
            for trial in asking:
                if all_here and (arm, step) not in self._judged:
                    self._judged[arm, step] = self._judge(arm, step)
                verdict = self._judged.get((arm, trial.asks if trial.asks is not None else step))
                if verdict is None or (not verdict and len(self._computing) >= self.places):
                    continue
                trial.asks = None
                self._computing.add(trial.number)
                found.append(Answer(trial, not verdict))
        return found

    def _judge(self, arm: int, step: int) -> bool:
        values = [trial.values[step] for trial in self.of(arm) if step in trial.values]
        mean = statistics.fmean(values)
        return self.judge is not None and self.judge(arm, step, mean)

    def _begun(self) -> list[Deed]:
        found: list[Deed] = []
        while len(self._computing) < self.places and (trial := self._next()) is not None:
            trial.state, trial.attempt = "running", trial.attempt + 1
            self._computing.add(trial.number)
            found.append(Begin(trial))
        return found

    def _next(self) -> Trial | None:
        while self._waiting:
            if (trial := self.trials[self._waiting.popleft()]).state == "waiting":  # else it was over in an earlier life
                return trial
        if self.closed or self.asked >= self.arms:
            return None
        if self.generation and self.asked % self.generation == 0 and self._open:
            return None
        self.ask(self.asked)
        self._opened(self.asked)
        return self._next()

    def _opened(self, arm: int) -> None:
        numbers = itertools.count(arm * len(self.seeds))
        made = [Trial(number, arm, seed) for number, seed in zip(numbers, self.seeds, strict=False)]
        self.trials |= {trial.number: trial for trial in made}
        self._waiting.extend(trial.number for trial in made)
        self._open.add(arm)
        self.asked = max(self.asked, arm + 1)

    def _ends(self) -> list[Deed]:
        found: list[Deed] = []
        for arm in sorted(self._open):
            if not all(trial.over for trial in self.of(arm)):
                continue
            self._open.discard(arm)
            states = {trial.state for trial in self.of(arm)}
            state = next(state for state in ("failed", "pruned", "complete") if state in states)
            values = [trial.value for trial in self.of(arm) if trial.value is not None]
            found.append(Over(arm, state, statistics.fmean(values) if state == "complete" else None))
        return found


def facts(trial: Trial) -> dict[str, Any]:
    """A trial as a row of trials.jsonl, without its arm's settings."""
    return {
        "trial": trial.number,
        "arm": trial.arm,
        "seed": trial.seed,
        "state": "running" if trial.state == "waiting" else trial.state,
        "value": trial.value,
        "step": max(trial.values, default=0),
        "attempt": trial.attempt,
        "why": trial.why,
    }
