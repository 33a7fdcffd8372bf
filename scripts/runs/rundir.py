"""A run's folder: the files that a run writes, and how a run is found again.

The one idea: the folder alone says what was run and with what result. `config.toml` repeats the run; `metrics.jsonl` is its
history, appended line by line, from which a resumed run takes only the versions that it makes again; `summary.json` is its end.
A new run never overwrites an old one.
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
import json
import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from shoal.coordinator.reports import Before
from shoal.protocol.errors import UserError

OWN = ("job", "seed", "actors", "evaluators", "transport", "device", "threads")
GROUPS = ("method", "problem", "keeping", "bearing", "checks", "around", "settings")


@dataclass(frozen=True)
class Config:
    """The config of a run: all that `shoal simulate` needs to repeat it.

    job: a built-in name, `module:attribute` or `file.py:attribute`. evaluators: actors of this machine that do evaluations
    alone; it stands in the file if it is above 0. threads: threads that each process of the run computed with; 0: not known.
    settings: all settings of the job: numbers, strings, booleans, and lists of numbers. groups: group -> names of its settings.
    In the file each group is a table, the method's name stands as `name` in [method], and a setting of no group stands in
    [settings]. A setting is read from any of these tables.
    """

    job: str
    seed: int = 0
    actors: int = 2
    transport: str = "shm"
    device: str = "auto"
    threads: int = 0
    evaluators: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False, compare=False)

    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {"transport": ("shm", "ipc", "tcp"), "device": ("auto", "cpu", "cuda")}

    def dumps(self) -> str:
        """The config as TOML. Raises TypeError for a value that TOML cannot hold."""
        import tomli_w

        left = dict(self.settings)
        tables: dict[str, Any] = {name: getattr(self, name) for name in OWN if name != "evaluators" or self.evaluators}
        for group, names in self.groups.items():
            table = {"name" if name == group else name: left.pop(name) for name in names if name in left}
            tables |= {group: table} if table else {}
        return tomli_w.dumps(tables | ({"settings": left} if left or not self.settings else {}))

    @classmethod
    def load(cls, path: Path | str) -> Config:
        """The config in a TOML file, which a user may have written: only `job` must be there. Raises UserError, one line."""
        table = _read_toml(Path(path))
        for key in table:
            if key not in (*OWN, *GROUPS):
                near = difflib.get_close_matches(key, [*OWN, *GROUPS], n=1)
                meant = f"did you mean {near[0]!r}?" if near else f"it may hold {', '.join([*OWN, *GROUPS])}"
                raise UserError(f"{path}: unknown key {key!r}; {meant}")
        if "job" not in table:
            raise UserError(f"{path}: has no `job`; add a line such as: job = 'digits'")
        settings: dict[str, Any] = {}
        for group in GROUPS:
            its = table.get(group, {})
            if not isinstance(its, dict):
                raise UserError(f"{path}: {group} = {its!r}; make it a table: [{group}]")
            settings |= {group if group == "method" and name == "name" else name: value for name, value in its.items()}
        config = cls(**{name: table[name] for name in OWN if name in table}, settings=settings)
        config.check(path)
        return config

    def check(self, path: Path | str) -> None:
        """Raises UserError, one line that begins with `path`, for a value of the wrong type or outside its range."""
        for name in ("job", "transport", "device"):
            value = getattr(self, name)
            if type(value) is not str or not value:
                raise UserError(f"{path}: {name} = {value!r}; it must be a string")
        for name in ("seed", "actors", "evaluators", "threads"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise UserError(f"{path}: {name} = {value!r}; it must be a whole number from 0")
        for name, choices in self.CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f"{path}: {name} = {getattr(self, name)!r}; it must be one of {', '.join(choices)}")


class RunDir:
    """The folder of one run. path: relative if the user gave it so, so that a printed path is short and can be typed again."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.config_file = self.path / "config.toml"
        self.metrics_file = self.path / "metrics.jsonl"
        self.waiting_file = self.path / "metrics.waiting"  # a row that waits for its evaluation
        self.summary_file = self.path / "summary.json"
        self.log_file = self.path / "log.txt"
        self.status_file = self.path / "status.json"
        self.picture = self.path / "learning.png"
        self.signature_file = self.path / "signature"
        self.held_out_file = self.path / "held_out.sha256"
        self.findings_file = self.path / "findings.json"

    @classmethod
    def create(cls, job: str, when: datetime, parent: Path | str = "runs", path: Path | str | None = None) -> RunDir:
        """A new folder: `path` if the user named a path, else `parent/JOB-YYYYmmdd-HHMMSS`. A folder in `parent` becomes the
        target of the link `parent/latest`.

        Raises UserError if `path` is a file or a folder that is not empty, or if the folder cannot be made.
        """
        try:
            made = _claim(Path(path)) if path is not None else _fresh(Path(parent), f"{short_name(job)}-{when:%Y%m%d-%H%M%S}")
        except OSError as refused:
            where = parent if path is None else path
            raise UserError(
                f"cannot make a folder in {where} ({refused.strerror}): name a folder where you may write"
            ) from None
        if made.parent.absolute() == Path(parent).absolute():
            _point(made.parent / "latest", made.name)
        return cls(made)

    @classmethod
    def open(cls, path: Path | str) -> RunDir:
        """The run in the folder `path`, or in the folder that a link points at now. If there is no run, raises UserError naming
        the run whose path is most similar."""
        path = Path(path)
        run = cls(path.parent / path.readlink() if path.is_symlink() else path)
        if not run.config_file.is_file():
            if (run.path / "sweep.toml").is_file():
                its = f"{run.path}/trials/0000, say, or `shoal simulate {run.path}/best/config.toml`"
                raise UserError(f"{run.path} is a sweep, not a run: name one of its runs, {its}")
            why = "has no config.toml" if run.path.is_dir() else "does not exist"
            raise UserError(f"{run.path} is no run: it {why}; {_nearest(run.path)}")
        return run

    @property
    def name(self) -> str:
        """The folder's own name, also if the run was opened through the link `latest`."""
        return self.path.resolve().name

    def write_config(self, config: Config) -> None:
        """Write config.toml. Raises FileExistsError if there is a config.toml."""
        with self.config_file.open("x", encoding="utf-8") as file:
            file.write(config.dumps())

    def extend(self, config: Config) -> None:
        """Replace config.toml, atomically, for a run that gets a later end."""
        replaced(self.config_file, config.dumps())

    def config(self) -> Config:
        return Config.load(self.config_file)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, atomically. The summary of a resumed run replaces the summary from before."""
        replaced(self.summary_file, json.dumps(finite(summary), indent=2, allow_nan=False) + "\n")

    def check_held_out(self, digest: str) -> None:
        """Raises UserError if the run was begun with other held-out data. digest: of the data now, "" if there is none."""
        before = self.held_out_file.read_text().strip() if self.held_out_file.is_file() else ""
        if before and digest and before != digest:
            raise UserError(
                f"{self.path}: the held-out data is not that of the run ({digest[:12]}, not {before[:12]}), so "
                "results would not compare: the job's data must be the same each time (seed its generators)"
            )

    def findings(self) -> dict[str, Any]:
        """The findings of trials before the run (`Problem.findings`); empty if no such file can be read."""
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self.findings_file.read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else {}
        return {}

    def keep_findings(self, findings: Mapping[str, Any]) -> None:
        """Keep what trials have found for later lives of the run, unless an earlier life has kept it."""
        if findings and not self.findings():
            replaced(self.findings_file, json.dumps(findings) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """The history: one row for each version, versions rising. Several lines of one version (its training, and an evaluation
        after the run was stopped) become one row. If a run of Shoal 0.1 was resumed, the later lines count.

        A line that was cut short by a sudden end is left out. The list is empty if nothing has been written yet.
        """
        kept: list[dict[str, Any]] = []
        for row in _json_lines(self.metrics_file):
            while kept and kept[-1]["version"] > row["version"]:
                kept.pop()
            before = kept.pop()["metrics"] if kept and kept[-1]["version"] == row["version"] else {}
            kept.append({**row, "metrics": {**before, **row["metrics"]}})
        return kept

    def rewind(self, version: int) -> Before:
        """Take the versions after this one out of the history: the run goes on from here. Returns what it had come to."""
        rows = self.rows()
        kept = [row for row in rows if row["version"] <= version]
        if len(kept) < len(rows):
            replaced(self.metrics_file, "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept))
        return Before(kept[-1]["seconds"], kept[-1]["contributions"]) if kept else Before()

    def waiting(self, version: int) -> dict[str, Any] | None:
        """The row that the last life had not written, because it waited for its evaluation; None if there is none, or if it is
        of a version after this one, which the run makes again."""
        rows = self.rows()
        for row in _json_lines(self.waiting_file):
            if (rows[-1]["version"] if rows else 0) < row["version"] <= version:
                return row
        return None

    def has_row(self, version: int) -> bool:
        """True if the history goes up to this version, or past it."""
        rows = self.rows()
        return bool(rows) and int(rows[-1]["version"]) >= version


def short_name(job: str) -> str:
    """A job's name as part of a folder's name: `some/where/mine.py:job` gives `mine`, `gymnasium:CartPole-v1` gives
    `gymnasium-CartPole-v1`."""
    where, _, attribute = job.rpartition(":")
    parts = [Path(where).name.removesuffix(".py"), attribute if attribute != "job" else ""] if where else [Path(job).name]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", "-".join(p for p in parts if p)).strip("-") or "run"


def finite(value: Any) -> Any:
    """The value as plain JSON data: NaN and infinities, which JSON lacks, become None; numpy's numbers become Python's."""
    kind = type(value)
    if kind is float:  # most values of a row are: the other questions take longer
        return value if math.isfinite(value) else None
    if kind is int or kind is str:
        return value
    if kind is dict or isinstance(value, Mapping):
        return {str(key): finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fresh(parent: Path, name: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    for attempt in itertools.count(1):
        made = parent / (name if attempt == 1 else f"{name}-{attempt}")
        with contextlib.suppress(FileExistsError):  # another run began in this second: mkdir decides who has the name
            made.mkdir()
            return made
    raise AssertionError("counting ended")


def _claim(path: Path) -> Path:
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, and a run needs a folder: name a folder that does not exist yet")
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"{path} exists and is not empty: name another folder, or go on with its run: shoal resume {path}")
    path.mkdir(parents=True, exist_ok=True)
    return path


def replaced(path: Path, text: str) -> None:
    """Write a file of this text, atomically: a reader finds the old text or the new text."""
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _point(link: Path, target: str) -> None:
    """Point the link at `target`, atomically: a reader finds the old run or the new run. On a file system without links nothing
    is made."""
    part = link.with_name(f".{link.name}-{target}")
    with contextlib.suppress(OSError, NotImplementedError):
        part.symlink_to(target, target_is_directory=True)
        try:
            part.replace(link)
        finally:
            part.unlink(missing_ok=True)


def _nearest(path: Path) -> str:
    files = [file for root in dict.fromkeys((path.parent, Path("runs"))) for file in sorted(root.glob("*/config.toml"))]
    names = [str(file.parent) for file in files if file.parent.name != "latest"]
    near = difflib.get_close_matches(str(path), names, n=1, cutoff=0.3) or names[-1:]
    return f"the nearest run is {near[0]}" if near else "start one: shoal simulate digits"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the path of a TOML file, runs/latest/config.toml say") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as broken:
        raise UserError(f"{path}: is not TOML: {broken}") from None


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # the last line of a run that was killed while it wrote
                yield json.loads(line)
