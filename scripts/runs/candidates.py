"""The candidates of a comparison: which runs a user means, and whether they may be compared at all.

The one idea: runs that differ in their seed alone are one candidate, so that the candidates are settings and their luck is
known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from shoal.jobs.catalog import INLINE, built_in
from shoal.jobs.settings import nearest, shown
from shoal.protocol.errors import UserError
from shoal.runs.choosing import brief
from shoal.runs.run import Place, Run, opened
from shoal.runs.rundir import Config, RunDir

Given: TypeAlias = "Run | Place | Sequence[Run | Place]"
"""A candidate as a user names it: a run, its folder, a folder of runs, an arm (lr=0.1,mu=0), or in Python a list of runs."""

ENDED = ("done", "stopped by stop_when")  # states of runs that ended as their user meant them to
PRUNED = "pruned"  # how the state of a run begins that a sweep's pruner ended


@dataclass(frozen=True)
class Candidate:
    """A candidate, one side of a comparison: runs that differ in their seed alone. name: as a person reads it. chosen: the user
    named it, and not a folder in which it was found."""

    name: str
    runs: tuple[Run, ...]
    chosen: bool = True

    def by_seed(self) -> dict[int, Run]:
        """Seed -> run, seeds rising; of several runs of one seed the newest."""
        return {run.config.seed: run for run in sorted(self.runs, key=lambda run: (run.config.seed, _made(run)))}


def candidates(given: Sequence[Given]) -> list[Candidate]:
    """The candidates that are named, in their order. Two runs are two candidates; more runs, or those in a folder, are one
    candidate for each group that differs in its seed alone; with arms, each arm is one. Raises UserError for fewer than two."""
    arms: list[str] = []
    places: list[Run | Place] = []
    for one in given:
        if isinstance(one, str) and "=" in one and not Path(one).exists():
            arms.append(one)
        elif isinstance(one, list | tuple):
            return _named([_listed_runs(each) for each in given])
        else:
            places.append(one)  # type: ignore[arg-type]  # anything else is refused where it is opened
    runs = [run for place in places or (["runs"] if arms else []) for run in _runs_in(place)]
    if arms:
        return [_arm(arm, runs) for arm in dict.fromkeys(arms)]
    if len(runs) == 2 == len(places):
        return _named([(run,) for run in runs])
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(repr((run.config.job, sorted(run.config.settings.items()))), []).append(run)
    if len(alike) < 2:
        what = "these runs differ in their seed alone" if len(runs) > 1 else ("one run is given" if runs else "no run is given")
        raise UserError(
            f"compare: {what}: name two runs, runs of two settings, or a folder of runs and two arms (runs lr=0.1 lr=0.2)"
        )
    return _named([tuple(group) for group in alike.values()], chosen=len(runs) == len(places))


def _listed_runs(given: Given) -> tuple[Run, ...]:
    runs = tuple(opened(each) for each in (given if isinstance(given, list | tuple) else [given]))  # type: ignore[arg-type]
    if not runs:
        raise UserError("compare: a list of runs is empty: each list is one candidate, with at least one run")
    return runs


def unfinished(run: RunDir) -> str:
    """Return why a run is not one that has ended: "pruned at version 3", or "running at version 3", say; "" if it has ended."""
    try:
        status: dict[str, Any] = json.loads(run.status_file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # of Shoal 0.1, or not begun
        return "" if run.summary_file.is_file() else "it has not ended once"
    state = str(status["state"])
    return "" if state.startswith(ENDED) else state if "version" in state else f"{state} at version {status['version']}"


def check_task(found: Sequence[Candidate]) -> None:
    """Raises UserError unless all runs were judged on one task: jobs of one name, of the same held-out data, or of the same
    environment."""
    first = found[0].runs[0]
    for run in (run for candidate in found for run in candidate.runs):
        if run.config.job != first.config.job and _task(run) != _task(first):
            raise UserError(
                f"{first.folder} is a run of the job {brief(first.config.job)} and {run.folder} of {brief(run.config.job)}: "
                "only runs of one job can be compared, or of jobs with the same held-out data or environment"
            )


def check_held_out(a: Run, b: Run) -> None:
    """Raises UserError if two runs that are a pair were judged on other held-out data."""
    one, other = _held_out(a), _held_out(b)
    if one and other and one != other:
        raise UserError(
            f"{a.folder} and {b.folder} have other held-out data ({one[:12]}, {other[:12]}), so their numbers do not compare: "
            "data and held_out must be the same for both"
        )


def _held_out(run: Run) -> str:
    file = run.dir.held_out_file
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def _task(run: Run) -> str:
    """The held-out data or environment that a run is judged on, where it is known without the user's code."""
    if digest := _held_out(run):
        return digest
    name = run.config.job
    job = None if name.startswith(INLINE) else built_in(name)
    env = getattr(job.problem, "env", None) if job is not None else None
    return f"environment {env}" if isinstance(env, str) else name


def _runs_in(place: Run | Place) -> list[Run]:
    """The run that is given, or all runs in a folder and in its folders, by name. Links are left out."""
    if isinstance(place, Run) or not isinstance(place, str | Path):
        return [opened(place)]
    folder = Path(place)
    if (folder / "config.toml").is_file() or not folder.is_dir():
        return [opened(folder)]
    configs = sorted([*folder.glob("*/config.toml"), *folder.glob("*/*/config.toml")])
    runs = [Run(file.parent) for file in configs if _is_run(file.parent, folder)]
    if not runs:
        raise UserError(f"{folder} is no run and has no runs in it: name a run's folder, or a folder of runs")
    return runs


def _is_run(folder: Path, top: Path) -> bool:
    linked = any(path.is_symlink() for path in (folder, folder.parent) if path != top)
    return not linked and ((folder / "metrics.jsonl").is_file() or (folder / "log.txt").is_file())


def _made(run: Run) -> tuple[float, str]:
    return run.dir.config_file.stat().st_mtime, str(run.folder)


def _arm(text: str, runs: Sequence[Run]) -> Candidate:
    """The runs whose settings are those of an arm: `lr=0.1`, or several, `lr=0.1,mu=0`. Raises UserError."""
    asked = dict(word.split("=", 1) for word in re.split(r",(?=\w+=)", text))
    for name, value in asked.items():
        known = list(dict.fromkeys(key for run in runs for key in ("job", *run.config.settings)))
        if name not in known:
            raise UserError(f"{text}: no run has a setting {name!r}: {nearest(name, known)}")
        there = list(dict.fromkeys(_value(run.config, name) for run in runs))
        if not any(_same(value, one) for one in there):
            raise UserError(f"{text}: no run has {name}={value}; there are {', '.join(f'{name}={one}' for one in there)}")
    meant = [run for run in runs if all(_same(value, _value(run.config, name)) for name, value in asked.items())]
    if not meant:
        raise UserError(f"{text}: no run has all of these settings; each of them some run has")
    if len({brief(run.config.job) for run in meant}) > 1:
        jobs = dict.fromkeys(_value(run.config, "job") for run in meant)
        raise UserError(
            f"{text} are runs of several jobs: {', '.join(jobs)}; add one to each arm: {text},job={next(iter(jobs))}"
        )
    if odd := _differing([run.config for run in meant]):
        values = dict.fromkeys(f"{odd[0]}={_value(run.config, odd[0])}" for run in meant)
        raise UserError(
            f"{text} are runs that differ in more than their seed: {', '.join(values)}; say which: {text},{next(iter(values))}"
        )
    return Candidate(text, tuple(meant))


def _value(config: Config, name: str) -> str:
    return brief(config.job) if name == "job" else shown(config.settings.get(name, ""))


def _same(typed: str, stands: str) -> bool:
    try:
        return float(typed) == float(stands)
    except ValueError:
        return typed == stands


def _differing(configs: Iterable[Config]) -> list[str]:
    """The settings in which configs differ."""
    settings = [config.settings for config in configs]
    keys = dict.fromkeys(key for one in settings for key in one)
    return [key for key in keys if len({repr(one.get(key)) for one in settings}) > 1]


def _named(groups: Sequence[tuple[Run, ...]], chosen: bool = True) -> list[Candidate]:
    """Candidates, each named by its folder if it is one run, else by the settings in which the candidates differ."""
    if len(groups) < 2:
        raise UserError(
            f"compare: {len(groups)} candidate is given: at least two are compared; shoal compare RUN_DIR RUN_DIR, say"
        )
    firsts = [group[0].config for group in groups]
    own = _differing(firsts)
    jobs = len({config.job for config in firsts}) > 1

    def name(group: tuple[Run, ...]) -> str:
        config = group[0].config
        if len(group) == 1:
            return str(group[0].folder)
        words = [brief(config.job)] * jobs + [f"{key}={shown(config.settings.get(key, ''))}" for key in own if not jobs]
        return ", ".join(words[:3]) or f"{group[0].folder} and {len(group) - 1} more"

    return [Candidate(name(group), group, chosen) for group in groups]
