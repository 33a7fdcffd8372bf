"""Whether `shoal compare` keeps its word: false positives, coverage of its intervals, and power against what it said.

The one idea: the truth is known, because the differences are drawn here; the statistics that judge them are the command's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from shoal.benchmarks.case import Finding
from shoal.protocol.draws import key
from shoal.runs import paired
from shoal.runs.paired import Floats

Draw: TypeAlias = Callable[[np.random.Generator, int], Floats]
"""(generator, n) -> n numbers of mean 0 and standard deviation 1."""

PAIRS = 30
CLUSTERS, EPISODES = 12, 50
FALSE, LEAST, MOST, OFF = 0.06, 0.93, 0.97, 0.05


def normal(rng: np.random.Generator, n: int) -> Floats:
    return rng.normal(size=n)


def skewed(rng: np.random.Generator, n: int) -> Floats:
    """Squares of normals, as a sum of squared errors has them: skewness 1.4."""
    found: Floats = (rng.chisquare(4, size=n) - 4) / np.sqrt(8)
    return found


def bimodal(rng: np.random.Generator, n: int) -> Floats:
    """Runs that learned or did not: two peaks, 2 standard deviations apart."""
    found: Floats = (rng.choice([-1.0, 1.0], size=n) + 0.3 * rng.normal(size=n)) / np.sqrt(1.09)
    return found


def clustered(rng: np.random.Generator, n: int) -> Floats:
    """The means of `n` training seeds over EPISODES episodes each: half of the variance is the seed's own."""
    seeds = rng.normal(size=n)
    found: Floats = (seeds[:, None] + rng.normal(size=(n, EPISODES)) * np.sqrt(EPISODES)).mean(1) / np.sqrt(2)
    return found


KINDS: Mapping[str, tuple[Draw, int]] = {
    "normal": (normal, PAIRS),
    "skewed": (skewed, PAIRS),
    "bimodal": (bimodal, PAIRS),
    "clustered": (clustered, CLUSTERS),
}


def compare(quick: bool) -> Finding:
    """Measures 1,000 comparisons of each kind; quick: 100."""
    many = 100 if quick else 1_000
    kinds = {name: measured(name, draw, pairs, many) for name, (draw, pairs) in KINDS.items()}
    a_a = sum(found["false"] for found in kinds.values()) / len(kinds)
    looks = {name: peeked(draw, 100, many) for name, (draw, _) in KINDS.items()}
    good = (
        a_a <= FALSE
        and all(LEAST <= found["covered"] <= MOST for found in kinds.values())
        and all(abs(found["power"] - found["predicted"]) <= OFF for found in kinds.values())
    )
    return Finding(
        figure=100 * a_a,
        unit=f"% of {many * len(kinds):,} comparisons of a thing with itself that find a difference",
        goal=100 * FALSE,
        holds=good if many == 1_000 else None,
        asked="at most 6 %; 95 % intervals that hold the truth in 93 to 97 %; power within 5 points of what was said",
        details={**kinds, "false_of_95_looks_sequential": looks},
    )


def measured(name: str, draw: Draw, pairs: int, many: int) -> dict[str, Any]:
    """Shares of `many` comparisons of `pairs` pairs: false positives of two draws of one kind (A/A), differences found where
    one of them has a true one, the power that was predicted for it, from the true spread and, on average, from the spread that
    was seen; and intervals that hold the truth, of differences that are themselves of this kind, which is harder."""
    effect = paired.findable(1.0, pairs)
    false = covered = found = 0
    said = []
    for number in range(many):
        rng = np.random.Generator(np.random.Philox(key=key(number, name)))
        low, high = paired.interval(draw(rng, pairs), rng)
        differences = (draw(rng, pairs) - draw(rng, pairs)) / np.sqrt(2)
        false += paired.sign_flips(differences, rng) <= 0.05
        covered += low <= 0 <= high
        found += paired.sign_flips(differences + effect, rng) <= 0.05
        said.append(paired.power(effect, float(np.std(differences, ddof=1)), pairs))
    predicted = paired.power(effect, 1.0, pairs)
    shares = {"false": false / many, "covered": covered / many, "power": found / many}
    return {"pairs": pairs, **shares, "predicted": predicted, "predicted_from_spread": float(np.mean(said))}


def peeked(draw: Draw, most: int, many: int) -> float:
    """The share of comparisons of a thing with itself that `always` calls different at one of its looks, after 6 pairs and
    after every other one up to `most`."""
    false = 0
    for number in range(many):
        rng = np.random.Generator(np.random.Philox(key=key(number, "looks")))
        differences = draw(rng, most) - draw(rng, most)
        false += any(paired.always(differences[:n])[0] <= 0.05 for n in range(6, most + 1))
    return false / many
