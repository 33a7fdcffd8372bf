"""A sweep's folder: what was asked for, each trial as it stands, and a run's folder for each trial of a job.

The one idea: trials.jsonl is the truth. A trial has a line when it begins and a line when it is over; its last line counts.
So a sweep that was killed knows its finished trials, and the settings of those that were running. arms.jsonl has a line for
each arm that is over, with what samplers and pruners must know of it.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from shoal.protocol.errors import UserError
from shoal.runs.rundir import RunDir, finite, replaced


@dataclass(frozen=True)
class Asked:
    """The settings that repeat a sweep. job: a job's name; objective: that of a user's own function; one of them is "". trials:
    at most so many trials, 0 for as many as the grid or the time has. timeout: seconds of one life in which trials begin, 0 for
    no limit. actors: trials at a time. space: axes and seeds as plain data. settings: fixed settings."""

    job: str = ""
    objective: str = ""
    sampler: str = ""
    pruner: str = ""
    trials: int = 0
    timeout: float = 0.0
    goal: str = ""
    seed: int = 0
    actors: int = 2
    device: str = "auto"
    space: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.job or self.objective


SAME = ("job", "objective", "sampler", "pruner", "goal", "seed", "device", "space", "settings")
"""The fields of Asked that a sweep keeps for all its lives; the other fields may change."""


class SweepDir:
    """The folder of one sweep."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.asked_file = self.path / "sweep.toml"
        self.trials_file = self.path / "trials.jsonl"
        self.arms_file = self.path / "arms.jsonl"
        self.journal_file = self.path / "optuna.log"
        self.picture = self.path / "sweep.png"
        self.best = self.path / "best"

    @classmethod
    def create(cls, name: str, when: datetime, path: Path | str | None) -> SweepDir:
        """A new folder: `path`, or sweeps/NAME-YYYYmmdd-HHMMSS. Raises UserError as RunDir.create does."""
        return cls(RunDir.create(name, when, parent="sweeps", path=path).path)

    @staticmethod
    def holds(path: Path | str) -> bool:
        """True if a sweep lies in this folder."""
        return (Path(path) / "sweep.toml").is_file()

    def write(self, asked: Asked) -> None:
        import tomli_w

        replaced(
            self.asked_file, tomli_w.dumps({name: value for name, value in asdict(asked).items() if value not in ("", {})})
        )

    def asked(self) -> Asked:
        """Raises UserError for a file that is no sweep.toml."""
        try:
            table = tomllib.loads(self.asked_file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as broken:
            raise UserError(f"{self.asked_file}: cannot be read as a sweep: {broken}") from None
        if odd := [name for name in table if name not in {each.name for each in fields(Asked)}]:
            raise UserError(
                f"{self.asked_file}: unknown key {odd[0]!r}; it may hold {', '.join(e.name for e in fields(Asked))}"
            )
        found = Asked(**table)
        for each in fields(Asked):
            kind, value = type(getattr(Asked(), each.name)), table.get(each.name, getattr(Asked(), each.name))
            if not isinstance(value, kind) and not (kind is float and isinstance(value, int)):
                raise UserError(f"{self.asked_file}: {each.name} = {value!r}; it must be of type {kind.__name__}")
        if bool(found.job) == bool(found.objective):
            raise UserError(f"{self.asked_file}: a sweep has either a job or an objective")
        return found

    def trial(self, number: int) -> RunDir:
        """The folder of the run of a trial."""
        return RunDir(self.path / "trials" / f"{number:04d}")

    def rows(self) -> list[dict[str, Any]]:
        """The last row of each trial, by number."""
        return _last(self.trials_file, "trial")

    def arms(self) -> list[dict[str, Any]]:
        """The row of each arm that is over, by number."""
        return _last(self.arms_file, "arm")


def _last(path: Path, key: str) -> list[dict[str, Any]]:
    """The last row for each number under `key`. A line that was cut short by a sudden end is left out."""
    found: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with suppress(json.JSONDecodeError):
            row = json.loads(line)
            found[row[key]] = row
    return [found[number] for number in sorted(found)]


class Record:
    """trials.jsonl or arms.jsonl, opened to append. lasting: a line that says that a trial is over is on the disk when `write`
    returns; arms can be told again from their trials."""

    def __init__(self, path: Path, lasting: bool = True) -> None:
        heal(path)
        self._file, self._lasting = path.open("a", encoding="utf-8"), lasting

    def write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(finite(row), allow_nan=False) + "\n")
        self._file.flush()
        if self._lasting and row["state"] != "running":
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def heal(path: Path) -> None:
    """Cut off the last line of a file if it has no end: its writer was killed."""
    if path.exists() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        os.truncate(path, text.rfind(b"\n") + 1)
