"""Learning: the built-in jobs over several seeds, by the commands that a user types.

The one idea: a seed counts only if its run learned, stayed good to the end, and does as well on fresh episodes.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from shoal.benchmarks.case import Finding
from shoal.benchmarks.play import Played, shoal, simulated

GOOD = 475.0  # mean return over 100 episodes at which gymnasium calls CartPole-v1 solved
ACCURATE = 0.93
ADAM = ("optimizer=adam", "lr=0.0015", "ent_coef=0.01", "max_grad_norm=2", "num_minibatches=1")
SMALL = ("num_envs=32", *ADAM, "total_timesteps=500000")  # of cartpole: 475 within 500,000 steps
FAST = 30_000.0  # environment steps a second, collected and learned from


def digits(quick: bool) -> Finding:
    """Measures held-out accuracy on three seeds and returns the lowest."""
    found = []
    for seed in range(3):
        with simulated("digits", "--seed", str(seed), "--actors", "2") as run:
            found.append({"accuracy": run.summary["metrics"]["accuracy"], "seconds": run.summary["seconds"]})
    lowest = min(one["accuracy"] for one in found)
    return Finding(
        figure=lowest,
        unit="held-out accuracy, the lowest of 3 seeds",
        goal=ACCURATE,
        holds=lowest >= ACCURATE,
        asked=f"at least {ACCURATE} on each of 3 seeds",
        details={"seeds": found},
    )


def cartpole(quick: bool) -> Finding:
    """Measures IMPALA: 500,000 steps, 2 actors, few environments."""
    return _solved("cartpole", range(1 if quick else 5), FAST)


def cartpole_ppo(quick: bool) -> Finding:
    """Measures PPO: 500,000 steps, 2 actors."""
    return _solved("cartpole-ppo", range(1 if quick else 5), 0.0)


def cartpole_dqn(quick: bool) -> Finding:
    """Measures DQN: 50,000 steps, 1 actor. The quick form has one seed and half of the steps."""
    steps, seeds = (25_000, range(1)) if quick else (50_000, range(5))
    found = []
    for seed in seeds:
        with simulated("cartpole-dqn", f"total_timesteps={steps}", "--seed", str(seed), "--actors", "1") as run:
            fresh = shoal("evaluate", str(run.run.path), "--episodes", "100", "--json")["return_mean"]
            found.append({"seed": seed, "steps": run.rows[-1]["steps"], **course(run), "fresh": fresh})
    good, wanted = sum(one["fresh"] >= GOOD for one in found), max(1, len(seeds) - 1)
    return Finding(
        figure=good,
        unit=f"seeds of {len(seeds)} whose weights play {GOOD:g} on fresh episodes",
        goal=wanted,
        holds=good >= wanted,
        asked=f"{GOOD:g} over 100 fresh greedy episodes after {steps:,} steps on {wanted} of {len(seeds)} seeds",
        details={"seeds": found},
    )


def _solved(job: str, seeds: Sequence[int], pace: float) -> Finding:
    found = [_seed(job, seed, SMALL if job == "cartpole" else ()) for seed in seeds]
    good = sum(one["good"] for one in found)
    wanted = max(1, len(seeds) - 1)
    rate = statistics.median(one["steps_per_second"] for one in found)
    asked = f"{GOOD:g} over 100 episodes on {wanted} of {len(seeds)} seeds in 500,000 steps, to the end and on fresh ones"
    return Finding(
        figure=good,
        unit=f"seeds of {len(seeds)} that reach a mean return of {GOOD:g} and stay there",
        goal=wanted,
        holds=good >= wanted and rate >= pace,
        asked=asked + (f"; at least {pace:,.0f} steps/s" if pace else ""),
        details={"steps_per_second": rate, "seeds": found},
    )


def _seed(job: str, seed: int, words: Sequence[str]) -> dict[str, Any]:
    with simulated(job, *words, "--seed", str(seed), "--actors", "2") as run:
        fresh = shoal("evaluate", str(run.run.path), "--episodes", "100", "--json")["return_mean"]
        return {"seed": seed, **course(run), "fresh": fresh, "good": _good(course(run), fresh)}


def course(run: Played) -> dict[str, Any]:
    """Returns the course of the mean return of the last 100 episodes: the environment steps at which it first was GOOD, its
    lowest value after that, and its last value.
    """
    returns = [(row["steps"], row["metrics"]["return_mean"]) for row in run.rows if "return_mean" in row["metrics"]]
    reached = next((at for at, (_, mean) in enumerate(returns) if mean >= GOOD), None)
    return {
        "reached": None if reached is None else returns[reached][0],
        "lowest_after": None if reached is None else min(mean for _, mean in returns[reached:]),
        "last": returns[-1][1] if returns else None,
        "steps_per_second": run.summary["steps_per_second"],
    }


def _good(found: Mapping[str, Any], fresh: float) -> bool:
    return found["reached"] is not None and found["reached"] <= 500_000 and found["last"] >= GOOD and fresh >= GOOD
