"""`shoal tune`: which numbers of actors, environments and steps make the most environment steps a second, and where the network
is computed, by short runs.

The one idea: nothing is predicted. Every row is a run of a few seconds by the very machinery that trains, and one setting
changes at a time: environments of a trajectory, then its length, then where the network is computed, then actors.
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal.jobs.job import Job
from shoal.jobs.problems import Environment
from shoal.jobs.settings import shown
from shoal.protocol.errors import UserError
from shoal.runs.run import Run
from shoal.runs.threads import cores

ENVS = (16, 32, 64, 128, 256, 512)
LENGTHS = (16, 32, 64, 128)
PLACES = (("central", False), ("central", True), ("actor", True), ("actor", False))  # inference, double_buffer
PLACED = ("inference", "double_buffer")
WARM = 0.25  # share of a run's seconds that is not counted: actors begin, environments are made
GAIN = 1.05  # a setting is better if it makes so many times the steps: less may be chance
VERSIONS = 4  # of each run, at least: with a large network a step may take longer than a run should
LONGEST = 5  # times the seconds of a run after which it ends with fewer versions, from the first one on
LARGEST = 2**27  # bytes of a trajectory that is tried: every process of a run holds some
NEEDED = ("num_envs", "rollout_length", "total_timesteps")  # settings of a job that is tuned
ENDLESS = 10**12  # environment steps

Measure = Callable[[Mapping[str, Any], int], float]
LeftOut = Callable[[Mapping[str, Any], int, str], object]


@dataclass
class Tuned:
    """The settings that were tried. given: words that were typed behind the job, which its command repeats. rows: (settings,
    actors, environment steps a second), in the order of their runs. The first row is the job as it stands. best: the row that
    is advised."""

    job: str
    given: tuple[str, ...] = ()
    rows: list[tuple[dict[str, Any], int, float]] = field(default_factory=list)
    best: tuple[dict[str, Any], int, float] = field(default_factory=lambda: ({}, 0, 0.0))

    def add(self, settings: dict[str, Any], actors: int, rate: float) -> None:
        """Add a run. It is the best if it makes GAIN times the steps of the job as it stands, and more than any other run."""
        row = (settings, actors, rate)
        self.rows.append(row)
        if len(self.rows) == 1 or (rate > GAIN * self.rows[0][2] and rate > self.best[2]):
            self.best = row

    @property
    def gain(self) -> float:
        """Steps a second of the best row, divided by those of the job as it stands."""
        return self.best[2] / max(1e-9, self.rows[0][2])

    @property
    def command(self) -> str:
        """The command that runs the job with the best row."""
        settings, actors, _ = self.best
        kept = [shlex.quote(word) for word in self.given if word.partition("=")[0] not in settings]
        return " ".join(["shoal simulate", shlex.quote(self.job), *kept, *_words(settings), f"--actors {actors}"])

    def plain(self) -> dict[str, Any]:
        """The content of `--json`."""
        rows = [{**settings, "actors": actors, "steps_per_second": rate} for settings, actors, rate in self.rows]
        settings, actors, rate = self.best
        best = {**settings, "actors": actors, "steps_per_second": rate}
        return {"job": self.job, "rows": rows, "best": best, "gain": self.gain, "command": self.command}

    def __str__(self) -> str:
        names = list(self.rows[0][0])
        lines = ["  ".join(f"{name:>14}" for name in (*names, "actors", "steps/s"))]
        for row in self.rows:
            settings, actors, rate = row
            cells = [*(shown(settings[name]) for name in names), str(actors), f"{rate:,.0f}"]
            lines.append("  ".join(f"{cell:>14}" for cell in cells) + ("  <- best" if row is self.best else ""))
        more = (
            f"{self.gain:.2f} times the steps a second of the job as it stands"
            if self.gain > 1
            else "the job stands best as it is"
        )
        return "\n".join([*lines, "", f"{more}: {self.command}"])


def tune(
    job: Job,
    name: str,
    actors: int | None,
    seconds: float,
    told: Callable[[str], object],
    given: Sequence[str] = (),
) -> Tuned:
    """Measure runs of `seconds` each, or of VERSIONS versions if these take longer. name: the JOB that was typed. given: words
    key=value and options that were typed behind it. actors: their number, which is then not tried; None: try. told: called with
    a line after each run. Raises UserError for a job that lacks one of NEEDED."""
    if missing := [setting for setting in NEEDED if setting not in job.options()]:
        raise UserError(f"tune: {name} has no {' and no '.join(missing)}: only jobs with {', '.join(NEEDED)} are tuned")
    found = Tuned(name, tuple(given))
    measure = _measured(job, seconds)

    def left_out(settings: Mapping[str, Any], count: int, why: str) -> None:
        told(f"{_typed(settings, count)}: left out: {why}")

    for settings, count, rate in tried(job.plain(), actors, cores(), measure, lambda its: small(job, its), left_out):
        found.add(settings, count, rate)
        told(f"{_typed(settings, count)}: {rate:,.0f} steps/s")
    return found


def _typed(settings: Mapping[str, Any], actors: int) -> str:
    return " ".join([*_words(settings), f"actors={actors}"])


def _words(settings: Mapping[str, Any]) -> list[str]:
    """The settings as they are typed."""
    return [f"{name}={shown(value)}" for name, value in settings.items()]


def small(job: Job, settings: Mapping[str, Any]) -> bool:
    """True if a trajectory with these settings has at most LARGEST bytes. Raises UserError if the job refuses the settings."""
    problem = job.configured(settings).problem
    rows = settings["rollout_length"], settings["num_envs"]
    return not isinstance(problem, Environment) or problem.trajectory(*rows).nbytes <= LARGEST


def tried(
    plain: Mapping[str, Any],
    actors: int | None,
    many: int,
    measure: Measure,
    fits: Callable[[Mapping[str, Any]], bool] = lambda settings: True,
    left_out: LeftOut = lambda settings, actors, why: None,
) -> Iterator[tuple[dict[str, Any], int, float]]:
    """Yield (settings, actors, rate) of one run after another: first the job as it stands, then one setting after another, each
    beginning from the best so far. A direction is followed no further if the rate falls, or if the settings do not fit: `fits`
    is False, or `fits` or `measure` raises UserError, because the job refuses the settings. left_out: called with settings that
    do not fit, and with the reason. A UserError of the job as it stands is raised."""

    def rate_of_other(settings: Mapping[str, Any], actors: int) -> float | None:
        """The rate; None if the settings do not fit."""
        try:
            if fits(settings):
                return measure(settings, actors)
            left_out(settings, actors, f"a trajectory has more than {LARGEST >> 20} MiB")
        except UserError as refused:
            left_out(settings, actors, str(refused))
        return None

    now = {name: plain[name] for name in ("num_envs", "rollout_length", *PLACED) if name in plain}
    count = actors or 2
    rate = measure(now, count)
    yield dict(now), count, rate
    for name, values in (("num_envs", ENVS), ("rollout_length", LENGTHS)):
        for ways in _ways(values, now[name]):
            for value in ways:
                other = {**now, name: value}
                if (its := rate_of_other(other, count)) is None:
                    break
                yield other, count, its
                if its < rate:
                    break
                now, rate = other, its
    stands = tuple(plain.get(name) for name in PLACED)
    for place in PLACES if PLACED[0] in now else ():
        other = {**now, **dict(zip(PLACED, place, strict=True))}
        if place != stands and (its := rate_of_other(other, count)) is not None:
            yield other, count, its
            if its > rate:
                now, rate = other, its
    for other_count in [n for n in (1, 2, many) if actors is None and n != count and n <= max(2, many)]:
        if (its := rate_of_other(now, other_count)) is not None:
            yield dict(now), other_count, its


def _ways(values: Sequence[int], at: int) -> tuple[list[int], list[int]]:
    """The values above `at`, rising, and those below, falling."""
    return [value for value in values if value > at], [value for value in reversed(values) if value < at]


def _measured(job: Job, seconds: float) -> Measure:
    def measure(settings: Mapping[str, Any], actors: int) -> float:
        from shoal.runs.running import run

        none = dict.fromkeys(("eval_every", "eval_episodes"), 0)
        more = {name: value for name, value in none.items() if name in job.options()}
        ready = job.configured({"total_timesteps": ENDLESS, **more, **settings})
        with tempfile.TemporaryDirectory() as folder:
            done = run(ready, actors=actors, folder=Path(folder) / "run", show=False, stop_when=enough(seconds))
            return rate_of(done, seconds)

    return measure


def enough(seconds: float) -> Callable[[Mapping[str, Any]], bool]:
    """A function of a run's rows, in their order: True for the row with which the run has lasted long enough. LONGEST times the
    seconds count from the first version, because a start may take long."""
    first: list[float] = []

    def ends(row: Mapping[str, Any]) -> bool:
        first[:] = first or [row["seconds"]]
        whole = row["version"] >= VERSIONS or row["seconds"] - first[0] > LONGEST * seconds
        return bool(row["seconds"] > seconds and whole)

    return ends


def rate_of(run: Run, seconds: float) -> float:
    """Environment steps a second of a run, without its first WARM share; 0 if it has made too few versions to tell."""
    rows = [row for row in run.history if row["seconds"] >= WARM * seconds]
    if len(rows) < 2 or rows[-1]["seconds"] <= rows[0]["seconds"]:
        last = run.history[-1:] or [{"steps": 0, "seconds": 1.0}]
        return float(last[0]["steps"] / max(1e-9, last[0]["seconds"]))
    return float((rows[-1]["steps"] - rows[0]["steps"]) / (rows[-1]["seconds"] - rows[0]["seconds"]))
