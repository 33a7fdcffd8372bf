"""A sweep as its user holds it: trials, arms, the best of them, a table and a picture.

The one idea: a sweep's folder says what was asked for and what became of each trial, so a sweep that has just ended, one that
was opened and one that is under way are looked at in the same way.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.jobs.catalog import INLINE
from shoal.protocol.errors import UserError
from shoal.runs.rundir import finite, replaced
from shoal.sweeps.arms import Arm, Goal, best, lineage
from shoal.sweeps.folder import Asked, SweepDir
from shoal.sweeps.planning import Place, goal_of
from shoal.sweeps.space import space_of
from shoal.sweeps.table import drawn, table

if TYPE_CHECKING:
    from shoal.runs.run import Run


class Sweep:
    """A sweep: `shoal.sweep(...)` returns one, `shoal.Sweep(FOLDER)` opens one.

    reason: "done", or why the sweep stopped before; "" if it was opened. Raises UserError if the folder holds no sweep.
    """

    def __init__(self, folder: Place) -> None:
        if not SweepDir.holds(folder):
            raise UserError(f"{folder} holds no sweep (no sweep.toml); start one: shoal sweep digits lr=0.01,0.1 seed=0..4")
        self.folder = Path(folder)
        self.dir = SweepDir(self.folder)
        self.reason, self.signal = "", 0

    @property
    def asked(self) -> Asked:
        return self.dir.asked()

    @property
    def goal(self) -> Goal:
        return goal_of(self.asked.goal)

    @property
    def trials(self) -> list[dict[str, Any]]:
        """A row a trial: trial, arm, seed, state, value, params, step, and the run's folder under `run` (trials.jsonl)."""
        return self.dir.rows()

    @property
    def arms(self) -> list[Arm]:
        """The arms, in the order in which they were asked for."""
        return arms_of(self.dir.rows(), len(space_of(self.asked.space).seeds))

    @property
    def best(self) -> Arm | None:
        """The complete arm of the best mean: its params, mean and interval. None if no arm is complete."""
        return best(self.arms, self.goal)

    @property
    def run(self) -> Run:
        """The run of the best arm under its first seed. Raises UserError if there is none."""
        from shoal.runs.run import load

        if (arm := self.best) is None or not self.asked.job:
            raise UserError(
                f"{self.folder} has no best run: {'no arm is complete' if arm is None else 'it swept an objective'}"
            )
        return load(self.dir.trial(_first(self.trials, arm)).path)

    def table(self, most: int = 20) -> str:
        """The arms as a table, best first."""
        return table(self.arms, self.goal, most)

    def tree(self) -> str:
        """The arms of a population as a tree, a line each: below an arm those that began from its snapshot."""
        return drawn(self.arms, self.goal)

    def lineage(self, number: int | None = None) -> list[Arm]:
        """The arms whose snapshots an arm comes from, the first one first, and the arm itself. number: of the arm; None: the
        best. Empty if there is no such arm."""
        arms = self.arms
        arm = self.best if number is None else next((each for each in arms if each.number == number), None)
        return [] if arm is None else lineage(arms, arm)

    def plot(self, out: Place | None = None) -> Path:
        """Draw the sweep: parallel coordinates, and the curves of arms. Returns the picture's path, sweep.png in its folder."""
        from shoal.sweeps.picture import plot

        return plot(self.dir, out)

    def summary(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        arms, asked, arm = self.arms, self.asked, self.best
        states = [row["state"] for row in self.trials]
        return {
            "job": asked.name,
            "goal": str(self.goal),
            "sampler": asked.sampler,
            "pruner": asked.pruner,
            "trials": {state: states.count(state) for state in ("complete", "pruned", "failed", "running")},
            "steps": sum(each.steps for each in arms),
            "best": None if arm is None else told_of(arm),
            **({} if arm is None or arm.origin is None else {"lineage": [each.number for each in lineage(arms, arm)]}),
            "arms": [told_of(each) for each in arms],
            "folder": str(self.folder),
            "reason": self.reason,
        }

    def __repr__(self) -> str:
        arm = self.best
        found = f"best {self.goal.metric} {arm.mean:.4g}" if arm else "no arm is complete"
        return f"<Sweep of {self.asked.name.removeprefix(INLINE)}: {len(self.trials)} trials, {found}, in {self.folder}>"


def keep_best(found: Sweep) -> None:
    """Write the folder best/: what the best arm is, and the config.toml of its first trial."""
    if (arm := found.best) is None:
        return
    folder = found.dir.best
    folder.mkdir(exist_ok=True)
    replaced(folder / "arm.json", json.dumps(finite(told_of(arm)), indent=2, allow_nan=False) + "\n")
    if found.asked.job:
        config = found.dir.trial(_first(found.trials, arm)).config_file
        shutil.copyfile(config, folder / "config.part")
        (folder / "config.part").replace(folder / "config.toml")


def _first(rows: list[dict[str, Any]], arm: Arm) -> int:
    """The number of an arm's first trial."""
    return int(min(row["trial"] for row in rows if row["arm"] == arm.number))


def arms_of(rows: list[dict[str, Any]], seeds: int) -> list[Arm]:
    """The arms that rows of trials.jsonl tell of, by number. seeds: trials that each has."""
    found: list[Arm] = []
    for number in sorted({row["arm"] for row in rows}):
        its = [row for row in rows if row["arm"] == number]
        states = [row["state"] for row in its] + ["running"] * (seeds - len(its))
        values = {row["seed"]: row["value"] for row in its if row["state"] == "complete"}
        why = next((row["why"] for row in its if row["state"] == "failed"), "")
        counts = {state: states.count(state) for state in dict.fromkeys(states)}
        steps = sum(row["step"] - row.get("began", 0) for row in its)
        params = max((row["params"] for row in its), key=len)
        found.append(Arm(number, params, values, counts, steps, why, _origin(rows, its[0])))
    return found


def _origin(rows: list[dict[str, Any]], row: dict[str, Any]) -> int | None:
    """The arm from whose snapshot an arm begins, from a row of it; None if it begins anew."""
    return next((int(each["arm"]) for each in rows if each["trial"] == row.get("from")), None)


def told_of(arm: Arm) -> dict[str, Any]:
    """An arm as plain data."""
    return {
        "arm": arm.number,
        "params": dict(arm.params),
        "state": arm.state,
        "mean": arm.mean if arm.values else None,
        "interval": arm.interval,
        "seeds": len(arm.values),
        "steps": arm.steps,
        "why": arm.why,
        **({} if arm.origin is None else {"from": arm.origin}),
    }
