"""A sweep as the page shows it: arms, their values and curves.

The one idea: a sweep is told whole whenever it has changed, because an arm's value depends on all its trials. It is read once
for all pages, and less often the longer reading takes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal.protocol.errors import UserError
from shoal.sweeps.arms import Arm, Goal, ranked
from shoal.sweeps.folder import SweepDir
from shoal.watching.tail import Tail

SPARE = 20.0  # a sweep is read again after so many times the seconds that reading it took
EVERY = 1.0  # seconds between two readings, at least
ARMS = 400  # arms on the page, best first
POINTS = 120  # points of an arm's curve
PARAMS = 12  # settings on the page


class SweepSource:
    """The folder of a sweep."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder, self.clock = SweepDir(path), clock
        self.told: dict[str, Any] = {}
        self.number = 0  # of the newest telling
        self._due = -math.inf
        self._tail = Tail(self.folder.trials_file)
        self._histories: dict[int, tuple[int, list[list[float]]]] = {}  # trial -> size of its history, and its points

    def about(self) -> dict[str, Any]:
        told = {"kind": "sweep", "name": self.folder.path.resolve().name, "path": str(self.folder.path)}
        try:
            asked = self.folder.asked()
        except UserError as broken:
            return {**told, "why": str(broken)}
        return {**told, "job": Path(asked.name).name, "sampler": asked.sampler, "pruner": asked.pruner, "trials": asked.trials}

    def cursor(self, mark: str) -> SweepCursor:
        return SweepCursor(self)

    def look(self) -> None:
        """Read the sweep again, if it is time and anything changed."""
        if (began := self.clock()) < self._due:
            return
        changed = self._tail.new() is not None
        try:
            told = self._read() if changed or self._runs() else self.told
        except UserError as broken:
            told = {"why": str(broken)}
        if told != self.told:
            self.told, self.number = told, self.number + 1
        self._due = began + max(EVERY, SPARE * (self.clock() - began))

    def _runs(self) -> bool:
        """Return whether a trial was under way at the last look: its curve grows while trials.jsonl stays."""
        return bool(self.told.get("counts", {}).get("running"))

    def _read(self) -> dict[str, Any]:
        from shoal.sweeps.found import arms_of
        from shoal.sweeps.planning import goal_of
        from shoal.sweeps.space import space_of

        asked, rows = self.folder.asked(), self.folder.rows()
        goal, space = goal_of(asked.goal), space_of(asked.space)
        arms = ranked(arms_of(rows, len(space.seeds)), goal)[:ARMS]
        names = list(dict.fromkeys([*(axis.name for axis in space.axes), *(name for arm in arms for name in arm.params)]))
        shown = {arm.number for arm in arms}
        curves = self._curves([row for row in rows if row["arm"] in shown], goal)
        states = [row["state"] for row in rows]
        return {
            "goal": str(goal),
            "metric": goal.metric,
            "largest": goal.largest,
            "axes": [
                {"name": axis.name, "log": axis.log, "values": [_text(one) for one in axis.values]} for axis in space.axes
            ],
            "names": names[:PARAMS],
            "counts": {state: states.count(state) for state in dict.fromkeys(states)},
            "arms": [_arm(arm, names[:PARAMS], curves.get(arm.number, ())) for arm in arms],
        }

    def _curves(self, rows: Sequence[Mapping[str, Any]], goal: Goal) -> dict[int, list[list[list[float]]]]:
        """Arm -> the points [step, value] of each of its trials."""
        found: dict[int, list[list[list[float]]]] = {}
        for row in rows:
            points = (
                self._history(row["trial"], goal.metric) if "run" in row else [list(pair) for pair in row.get("values", ())]
            )
            known = [point for point in points if point[1] is not None]
            if known:
                found.setdefault(row["arm"], []).append(known)
        return found

    def _history(self, trial: int, metric: str) -> list[list[float]]:
        """The points of a trial's run, read again when its file has another size."""
        run = self.folder.trial(trial)
        try:
            size = run.metrics_file.stat().st_size
        except OSError:
            return []
        if trial not in self._histories or self._histories[trial][0] != size:
            points = [[row["version"], row["metrics"].get(metric)] for row in run.rows()]
            self._histories[trial] = size, [point for point in points if point[1] is not None]
        return self._histories[trial][1]


class SweepCursor:
    mark = ""

    def __init__(self, source: SweepSource) -> None:
        self.source, self._number = source, -1

    def news(self) -> Iterator[tuple[str, dict[str, Any]]]:
        self.source.look()
        if self._number != self.source.number:
            self._number = self.source.number
            yield "sweep", {"sweep": self.source.told}


def mean_of(curves: Sequence[Sequence[Sequence[float]]], most: int = POINTS) -> list[list[float]]:
    """The mean of several curves, at the steps that all of them have, at most `most` of them."""
    known = [{point[0]: point[1] for point in curve} for curve in curves]
    steps = sorted(set.intersection(*(set(one) for one in known))) if known else []
    every = max(1, math.ceil(len(steps) / most))
    kept = [*steps[::every], *([steps[-1]] if steps and (len(steps) - 1) % every else [])]
    return [[step, sum(one[step] for one in known) / len(known)] for step in kept]


def _arm(arm: Arm, names: Sequence[str], curves: Sequence[Sequence[Sequence[float]]]) -> dict[str, Any]:
    mean = arm.mean if arm.values else None
    about = {"arm": arm.number, "state": arm.state, "mean": mean, "seeds": len(arm.values), "steps": arm.steps, "why": arm.why}
    params = [arm.params.get(name) for name in names]
    plain = [
        one if isinstance(one, int | float) and not isinstance(one, bool) else None if one is None else _text(one)
        for one in params
    ]
    return {**about, "params": plain, "curve": mean_of(curves)}


def _text(value: Any) -> str:
    from shoal.sweeps.space import short

    return str(short(value))[:60]
