"""Reinforcement learning to a threshold: how many steps and seconds, over seeds, and whether a run stays there.

The one idea: a seed counts by its worst moment after it arrived, because asynchronous runs are known to rise and to fall back.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shoal.benchmarks.case import Finding
from shoal.benchmarks.play import Played, simulated

SOLVED, FALLEN = 475.0, 450.0  # mean returns of 100 episodes of CartPole-v1: solved; fallen back
LANDED = 240.0  # of LunarLander-v3
THROUGHPUT: tuple[str, ...] = ()  # settings of cartpole, whose preset is for few seconds
SAMPLE: tuple[str, ...] = ()  # settings of gymnasium:CartPole-v1, whose preset is for few steps


@dataclass(frozen=True)
class Course:
    """The course of the mean return of the last 100 episodes. reached, seconds: environment steps and seconds of the run,
    without the start of its processes, at which it first was at the threshold; None: never. lowest_after: its lowest value from
    then on. last: at the end. greedy: mean return of fresh greedy episodes by the last weights. steps, took: of the whole run.
    """

    reached: int | None
    seconds: float | None
    lowest_after: float | None
    last: float | None
    greedy: float | None
    steps: int
    took: float


def course(run: Played, threshold: float) -> Course:
    told = [row for row in run.rows if "return_mean" in row["metrics"]]
    means = [row["metrics"]["return_mean"] for row in told]
    full = [row["metrics"].get("episodes", math.inf) >= 100 for row in told]  # a mean of fewer episodes is luck
    at = next((i for i, mean in enumerate(means) if mean >= threshold and full[i]), None)
    return Course(
        reached=None if at is None else told[at]["steps"],
        seconds=None if at is None else told[at]["seconds"],
        lowest_after=None if at is None else min(means[at:]),
        last=means[-1] if means else None,
        greedy=run.rows[-1]["metrics"].get("eval/return_mean"),
        steps=run.summary["steps"],
        took=run.steps[-1]["seconds"],
    )


def courses(job: str, words: Sequence[str], seeds: int, threshold: float, actors: int = 2) -> list[Course]:
    """Returns the courses of seeds 0 to `seeds` - 1."""
    found = []
    for seed in range(seeds):
        with simulated(job, *words, "--seed", str(seed), "--actors", str(actors)) as run:
            found.append(course(run, threshold))
    return found


def median_of(values: Sequence[float | None]) -> float:
    """Returns the median; a seed that never arrived counts as infinity."""
    return statistics.median(math.inf if value is None else value for value in values)


def told(found: Sequence[Course], words: Sequence[str]) -> Mapping[str, Any]:
    return {"settings": " ".join(words), "seeds": [asdict(each) for each in found]}


def cartpole_solve(quick: bool) -> Finding:
    """Measures seconds and steps to a mean return of 475 on CartPole-v1: settings for the clock, and settings for few steps."""
    seeds = 1 if quick else 10
    fast = courses("cartpole", THROUGHPUT, seeds, SOLVED)
    few = courses("gymnasium:CartPole-v1", SAMPLE, seeds, SOLVED)
    stays = [each for each in fast if (each.last or 0) >= SOLVED and (each.lowest_after or 0) >= FALLEN]
    slowest, steps = max(each.seconds or math.inf for each in fast), median_of([each.reached for each in few])
    return Finding(
        figure=None if math.isinf(slowest) else slowest,
        unit=f"s to a mean return of 475 over 100 episodes, the slowest of {seeds} seeds",
        goal=10.0,
        ratio=None if math.isinf(slowest) else slowest / 10,
        holds=slowest <= 10 and len(stays) == seeds and steps <= 60_000,
        asked="at most 10 s, all seeds end at 475 and none falls below 450 again; at most 60,000 steps with other settings",
        details={
            "seeds_that_stay": len(stays),
            "for_the_clock": told(fast, THROUGHPUT),
            "for_few_steps": {"median_steps": None if math.isinf(steps) else steps, **told(few, SAMPLE)},
        },
    )


def lunarlander(quick: bool) -> Finding:
    """Measures steps and seconds to a mean return of 240 on LunarLander-v3."""
    words = ("total_timesteps=60000",) if quick else ("total_timesteps=500000",)
    found = courses("lunarlander", words, 1 if quick else 10, LANDED)
    steps, slowest = median_of([each.reached for each in found]), max(each.seconds or math.inf for each in found)
    arrived = sum(each.reached is not None for each in found)
    return Finding(
        figure=arrived,
        unit=f"seeds of {len(found)} at a mean return of 240 on LunarLander-v3 within {found[0].steps:,} steps",
        goal=len(found),
        holds=None if quick else arrived == len(found) and slowest <= 180,
        asked="all of 10 seeds in at most 500,000 steps and 3 minutes each",
        details={
            "median_steps": None if math.isinf(steps) else steps,
            "slowest_seconds": None if math.isinf(slowest) else slowest,
            **told(found, words),
        },
    )


def staleness(quick: bool) -> Finding:
    """Measures what lag costs: steps to a mean return of 475 on CartPole-v1 of 8 actors at max_lag=8, to those of the plain
    loop, in which nothing is stale."""
    seeds = 2 if quick else 10
    # a version has the rows of 32 environments; a run ends when it has arrived, which changes nothing before
    adam = ("optimizer=adam", "lr=0.002", "ent_coef=0.01", "vf_coef=0.5", "num_minibatches=1")
    words = ("num_envs=4", "batch=8", *adam, "max_lag=8", "total_timesteps=500000", f"target_return={SOLVED:g}")
    stale, fresh = (courses("cartpole", words, seeds, SOLVED, actors=actors) for actors in (8, 0))
    ours, base = (median_of([each.reached for each in found]) for found in (stale, fresh))
    ratio = None if math.isinf(ours) or math.isinf(base) else ours / base
    return Finding(
        figure=ratio,
        unit=f"of the plain loop's steps to a return of 475: 8 actors, max_lag=8, medians of {seeds} seeds",
        goal=1.10,
        ratio=ratio,
        holds=ratio is not None and ratio <= 1.10,
        asked="at most 1.10",
        details={"stale": told(stale, words), "fresh": told(fresh, words)},
    )
