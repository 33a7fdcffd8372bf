"""Steps a second of reinforcement learning: what actors make, what the learner takes in, and what travels between them.

The one idea: a run is paced from its own record, without its start and its end; the CPU of all its processes stands beside,
because other load on the machine disturbs it less than the clock.
"""

from __future__ import annotations

import os
import resource
import statistics
import tempfile
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from shoal.benchmarks.case import Finding
from shoal.benchmarks.collecting import collecting
from shoal.benchmarks.peers import questions
from shoal.benchmarks.peers.beside import Beside
from shoal.benchmarks.play import simulated
from shoal.benchmarks.spending import Spent, spending, spent
from shoal.benchmarks.timing import interleaved
from shoal.jobs.presets import found as preset

EDGE = 0.25  # share of a run's versions left out at its beginning: processes start and memory is first touched
LEARNED, COLLECTED, EFFICIENT, OUTSIDE = 350_000.0, 400_000.0, 0.85, 0.10
SMALL = ("num_envs=128", "rollout_length=32", "batch=2")  # trajectories of 4,096 steps
BEST = ("num_envs=512", "rollout_length=32", "num_minibatches=1")  # of cartpole: the fastest of those tried


@dataclass(frozen=True)
class Pace:
    """The pace of a run. rate: environment steps a second. cpu: CPU seconds of all processes for a million steps. idle: core
    seconds for a million steps in which the machine had nothing to do meanwhile; 0 where the system does not tell. steps: of
    the whole run. lag: the mean of all versions' mean lags. means: seconds and mean return of 100 episodes, by version."""

    rate: float
    cpu: float
    idle: float
    steps: int
    lag: float
    means: tuple[tuple[float, float], ...]

    def seconds_to(self, threshold: float) -> float | None:
        """Returns seconds until the mean return first was at the threshold; None: it never was."""
        return next((seconds for seconds, mean in self.means if mean >= threshold), None)

    def plain(self) -> dict[str, Any]:
        return {
            "steps_per_second": self.rate,
            "cpu_seconds_a_million_steps": self.cpu,
            "idle_core_seconds_a_million_steps": self.idle,
            "steps": self.steps,
            "lag_mean": self.lag,
            "return_mean": self.means[-1][1] if self.means else None,
        }


def paced(job: str, steps: int, *words: str, actors: int = 2, seed: int = 0, left: tuple[float, float] = (0.0, 0.0)) -> Pace:
    """Returns the pace of `shoal simulate JOB` over `steps` environment steps. left: CPU seconds and idle core seconds that are
    left out."""
    before, unused = _children() + left[0], _idle() + left[1]
    common = (f"total_timesteps={steps}", "--actors", str(actors), "--seed", str(seed))
    with simulated(job, *words, *common) as run:
        rows = run.steps
    spent, unused = _children() - before, max(0.0, _idle() - unused)
    first, last = rows[int(EDGE * len(rows))], rows[-1]
    lags = [row["metrics"]["lag_mean"] for row in rows if "lag_mean" in row["metrics"]]
    return Pace(
        rate=(last["steps"] - first["steps"]) / max(1e-9, last["seconds"] - first["seconds"]),
        cpu=1e6 * spent / last["steps"],
        idle=1e6 * unused / last["steps"],
        steps=last["steps"],
        lag=statistics.fmean(lags) if lags else 0.0,
        means=tuple((row["seconds"], row["metrics"]["return_mean"]) for row in rows if "return_mean" in row["metrics"]),
    )


def _children() -> float:
    """Returns CPU seconds of all processes that descended from this one and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _idle() -> float:
    """Returns core seconds since the machine's start in which it had nothing to do; 0 where the system does not tell."""
    try:
        fields = Path("/proc/stat").read_text().split(maxsplit=6)
    except OSError:
        return 0.0
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")  # idle, and waiting for a disk


class Turns:
    """Paces of one way of several, taken by turns: `interleaved(3, Turns(...), ...)`."""

    def __init__(self, job: str, steps: int, *words: str, actors: int = 2) -> None:
        self.job, self.steps, self.words, self.actors = job, steps, words, actors
        self.found: list[Pace] = []
        self.start = self.idle = 0.0  # CPU seconds and idle core seconds that are left out

    def __call__(self) -> float:
        seed = len(self.found)
        left = self.start, self.idle
        pace = paced(self.job, self.steps, *self.words, actors=self.actors, seed=seed, left=left)
        self.found.append(pace)
        return self.found[-1].rate

    def started(self) -> Turns:
        """Returns self, after a run of one version, whose CPU and idle time are left out of the turns to come."""
        one = paced(self.job, 1, *self.words, actors=self.actors)
        self.start, self.idle = 1e-6 * one.cpu * one.steps, 1e-6 * one.idle * one.steps
        return self

    @property
    def median(self) -> Pace:
        return sorted(self.found, key=lambda pace: pace.rate)[len(self.found) // 2]

    def plain(self) -> dict[str, Any]:
        """The pace of the median turn, and the turns' number, whose seeds count from 0."""
        return {**self.median.plain(), "seeds": len(self.found)}


def cartpole_learn(quick: bool) -> Finding:
    """Measures steps a second, collected and learned from in one pass by V-trace: the best settings, and nothing set."""
    steps = 3_000_000 if quick else 12_000_000
    best, unset = Turns("cartpole", steps, *BEST), Turns("cartpole", steps // 3)
    beside = Beside(questions.cartpole(quick), quick)
    interleaved(1 if quick else 3, best, unset, beside.turn)
    rate, factory, rllib = best.median.rate, beside.best("samplefactory"), beside.best("rllib")
    near = unset.median.rate / rate
    fast = factory is not None and rllib is not None and rate >= max(3.5 * factory, 40 * rllib)
    return Finding(
        figure=rate,
        unit="steps/s of CartPole-v1, collected and learned from by V-trace, 2 actors",
        goal=LEARNED,
        peer=factory,
        ratio=None if factory is None else rate / factory,
        holds=rate >= LEARNED and near >= 0.9 and fast,
        asked="at least 350,000/s, 3.5 times Sample Factory's, 40 times RLlib's; nothing set, within 10 % of that",
        details={
            "best": {**best.plain(), "settings": " ".join(BEST)},
            "nothing_set": {**unset.plain(), "of_best": near},
            "times_rllib": None if rllib is None else rate / rllib,
            **beside.details(),
        },
    )


def cartpole_collect(quick: bool) -> Finding:
    """Measures steps a second that are collected only: the learner copies trajectories, and its weights stay."""
    steps = 4_000_000 if quick else 16_000_000
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        turns = Turns(collecting(Path(folder), "CartPole-v1"), steps, *BEST)
        interleaved(2 if quick else 3, turns)
    rate = turns.median.rate
    return Finding(
        figure=rate,
        unit="steps/s of CartPole-v1, collected only, 2 actors",
        goal=COLLECTED,
        ratio=rate / COLLECTED,
        holds=rate >= COLLECTED,
        asked="at least 400,000/s",
        details=turns.plain(),
    )


def scaling(quick: bool) -> Finding:
    """Measures steps a second with as many actors as cores, to that many times the steps of one actor: Acrobot-v1, whose steps
    are Python, collected and learned from."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    many = max(2, cores)
    words, steps = ("method=impala", "num_envs=32", "rollout_length=32", "batch=1"), 100_000 if quick else 400_000
    one = Turns("gymnasium:Acrobot-v1", steps, *words, actors=1)
    all_ = Turns("gymnasium:Acrobot-v1", many * steps, *words, actors=many)
    interleaved(1 if quick else 3, one, all_)
    efficiency = all_.median.rate / (many * one.median.rate)
    return Finding(
        figure=efficiency,
        unit=f"of {many} times the steps/s of one actor, {many} actors on {cores} cores",
        goal=EFFICIENT,
        ratio=efficiency,
        holds=efficiency >= EFFICIENT,
        asked="at least 0.85",
        details={"one": one.plain(), "many": all_.plain(), "actors": many},
    )


def overhead(quick: bool) -> Finding:
    """Measures the share of CPU outside environments, policies and learning: transport, protocol and waking, with one actor.
    The figure is at the settings that the built-in job has if nothing is set. Beside it: with trajectories a quarter as
    large."""
    steps, many = 1_500_000 if quick else 6_000_000, 1 if quick else 3
    found: dict[str, list[Spent]] = {"nothing_set": [], "small": []}
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        job = spending(Path(folder), "CartPole-v1")
        for seed in range(many):
            for name, words in (("nothing_set", preset_words("CartPole-v1", "impala")), ("small", SMALL)):
                asked = (*words, "journal=off", f"total_timesteps={steps}")
                with simulated(job, *asked, "--actors", "1", "--seed", str(seed)) as run:
                    found[name].append(spent(run.steps[int(EDGE * len(run.steps)) :]))
    unset, small = (sorted(each, key=lambda one: one.outside)[many // 2] for each in found.values())
    return Finding(
        figure=unset.outside,
        unit="of the CPU of the built-in job with one actor, nothing set, is outside environments, policy and learning",
        goal=OUTSIDE,
        ratio=unset.outside,
        holds=unset.outside <= OUTSIDE,
        asked="at most 0.10",
        details={
            "cpu_seconds_a_million_steps": {**asdict(unset), "whole": unset.whole},
            "shares_by_seed": [one.outside for one in found["nothing_set"]],
            "settings": " ".join(preset_words("CartPole-v1", "impala")),
            "small_trajectories": {
                "outside": small.outside,
                "cpu_seconds_a_million_steps": {**asdict(small), "whole": small.whole},
                "shares_by_seed": [one.outside for one in found["small"]],
                "settings": " ".join(SMALL),
            },
        },
    )


def preset_words(env: str, method: str) -> tuple[str, ...]:
    """Returns the settings of the preset of an environment and a method, as words of the command line, without the number of
    steps."""
    row = preset(env, method)
    assert row is not None, f"no preset for {env} and {method}"
    return tuple(f"{name}={value}" for name, value in row.settings.items() if name != "total_timesteps")


CHEETAH = ("num_envs=16", "rollout_length=128", "clients=2", "num_minibatches=32", "update_epochs=10")
SOFT = ("method=sac", "learning_starts=500", "buffer_size=100000")  # random steps are few, because none of them counts


def cheetah(quick: bool) -> Finding:
    """Measures steps a second of PPO and of SAC on HalfCheetah-v5, beside CleanRL's loops and Stable-Baselines3."""
    asked = "at least twice the steps/s of Stable-Baselines3 and of CleanRL's loop, by PPO, and by SAC in either precision"
    if find_spec("mujoco") is None:
        return Finding(None, "steps/s", asked=asked, details={"skipped": "mujoco is not installed: pip install mujoco"})
    steps, updates, job = 60_000 if quick else 300_000, 1_000 if quick else 2_000, "gymnasium:HalfCheetah-v5"
    ours, beside = Turns(job, steps, *CHEETAH), Beside(questions.cheetah(steps // 4), quick)
    soft, soft_beside = Turns(job, updates, *SOFT, actors=1), Beside(questions.cheetah_sac(updates), quick)
    rounded = Turns(job, updates, *SOFT, "precision=bf16", actors=1)
    interleaved(1 if quick else 3, ours, beside.turn, soft, rounded, soft_beside.turn)
    rate, best = ours.median.rate, _fastest(beside)
    soft_rate, soft_best = max(soft.median.rate, rounded.median.rate), _fastest(soft_beside)
    return Finding(
        figure=rate,
        unit="steps/s of PPO on HalfCheetah-v5, collected and learned from, 2 actors",
        goal=None if best is None else 2 * best,
        peer=best,
        ratio=None if best is None else rate / best,
        holds=None if best is None or soft_best is None else rate >= 2 * best and soft_rate >= 2 * soft_best,
        asked=asked,
        details={
            "ours": {**ours.plain(), "settings": " ".join(CHEETAH)},
            **beside.details(),
            "sac": {
                "ours": {**soft.plain(), "settings": " ".join(SOFT)},
                "bf16": {**rounded.plain(), "settings": " ".join((*SOFT, "precision=bf16"))},
                "faster_of_ours_to_faster_peer": None if soft_best is None else soft_rate / soft_best,
                **soft_beside.details(),
            },
        },
    )


def _fastest(beside: Beside) -> float | None:
    """Returns the steps a second of the fastest peer; None if one of those that were asked did not answer."""
    found = [beside.of(name) for name in beside.questions]
    return None if None in found else max(one for one in found if one is not None)
