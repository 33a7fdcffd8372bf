"""The work of `shoal compare`: is one candidate better than another, by how much, and could it have been luck?

The one idea: numbers are compared in pairs, two of the same training seed, or two of the same example or episode, and what the
pairs share falls out of their difference. If there are several training seeds, a seed is one number: episodes of one policy
are not independent runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shoal.jobs.settings import nearest
from shoal.protocol.draws import key
from shoal.protocol.errors import UserError
from shoal.runs import paired
from shoal.runs.candidates import PRUNED, Candidate, Given, candidates, check_held_out, check_task, unfinished
from shoal.runs.comparison import EQUAL, LETTERS, OPEN, SAME, Comparison, Versus, listed
from shoal.runs.judging import Values, judged_each
from shoal.runs.metrics import directed, ordered
from shoal.runs.paired import Floats
from shoal.runs.run import Run, trusted

ALPHA = 0.05
EPISODES = 100
LOWER = ("loss", "error", "perplexity", "mse", "mae", "rmse", "bytes")  # a metric whose name ends so is better if it is smaller


def compare(
    *given: Given,
    goal: str = "",
    by: str = "",
    episodes: int = 0,
    equal: float | None = None,
    find: float | None = None,
    sequential: bool = False,
    trust: bool = True,
) -> Comparison:
    """Compare runs, and return what was found, the first candidate against each other.

    given: two runs or their folders; or more, and folders of runs, where runs that differ in their seed alone are one
    candidate; or a folder and arms, "lr=0.01", "lr=0.1"; or lists of runs, each one candidate. goal: a metric, its direction in
    front if its name does not say it: "accuracy", "min:cost"; "": the first of accuracy, held_out_loss, return_mean and loss
    that all have. by: "example", the newest weights on the same held-out examples or episodes; "seed", a number for each
    training seed; "": by seed if a candidate has several runs. episodes: greedy episodes for each run of a
    reinforcement-learning job (0: 100, or by seed the metric that the runs wrote themselves). equal: ask whether the difference
    is smaller than this. find: the difference for which the number of pairs needed is told. sequential: bounds that hold
    however often the same comparison is looked at while it grows; runs that have not ended are left out. trust: run the
    job's own code also if a run's folder is not signed as this user's.

    Raises UserError, one line.
    """
    _check(by, equal, find, episodes)
    found = candidates(given)
    if len(found) < 2:
        raise UserError("compare: one candidate is given: at least two are compared; shoal compare FOLDER lr=0.1 lr=0.2, say")
    if len(found) > len(LETTERS):
        raise UserError(f"compare: {len(found)} candidates; at most {len(LETTERS)} are compared at once: name arms, lr=0.1 say")
    check_task(found)
    found, left = _ended(found, sequential)
    several = any(len(candidate.runs) > 1 for candidate in found)
    fresh = by == "example" or episodes > 0 or not (several or by)
    for run in (run for candidate in found for run in candidate.runs if fresh):
        trusted(run, trust)
    many = episodes or EPISODES
    if several or by == "seed":
        seeds = _common(found, left)
        metric, smaller, values = _of_seeds(found, seeds, goal, many if fresh else 0)
        unit = "seeds"
    else:
        seeds = [candidate.runs[0].config.seed for candidate in found]
        metric, smaller, unit, values = _of_examples(found, goal, many)
    rows = _rows(found, values, smaller, unit, equal, find, sequential)
    mean = float(np.mean(values[0]))
    wanted = "min" if smaller else "max"
    return Comparison(
        metric, wanted, unit, len(values[0]), tuple(seeds), ALPHA, sequential, equal, found[0].name, mean, rows, tuple(left)
    )


def _check(by: str, equal: float | None, find: float | None, episodes: int) -> None:
    if by not in ("", "seed", "example"):
        raise UserError(f"by={by!r}: allowed is one of seed, example; leave it out to have it chosen")
    for name, value in (("equal", equal), ("find", find)):
        if value is not None and not (0 < value < math.inf):
            raise UserError(f"{name}={value:g}: must be a number above 0, a difference of the metric")
    if episodes < 0:
        raise UserError(f"episodes={episodes}: must be a whole number from 0")


def _ended(found: list[Candidate], sequential: bool) -> tuple[list[Candidate], list[str]]:
    """The candidates with those of their runs that have ended, and a line for what was left out: what a pruner ended, and, if
    `sequential`, what has not ended yet. Raises UserError for a candidate that the user named and of which nothing is left, and
    for a run that has not ended: a look before the end would be one more chance to find something."""
    left: list[str] = []
    kept = []
    for candidate in found:
        why = {run: unfinished(run.dir) for run in candidate.runs}
        for run in candidate.runs:
            if why[run] and not sequential and not why[run].startswith(PRUNED):
                more = "; or look at the others meanwhile with --sequential" if len(candidate.runs) > 1 else ""
                raise UserError(
                    f"{run.folder} has not ended ({why[run]}): wait, or go on with it: shoal resume {run.folder}{more}"
                )
        if ended := tuple(run for run in candidate.runs if not why[run]):
            if early := [f"{run.folder} ({why[run]})" for run in candidate.runs if why[run]]:
                left.append(f"{candidate.name}: not ended: {', '.join(early)}")
            kept.append(Candidate(candidate.name, ended, candidate.chosen))
            continue
        said = f"{candidate.name}: none of its runs has ended ({why[candidate.runs[0]]})"
        if candidate.chosen:
            raise UserError(f"{said}, so there is nothing to compare: let them end with `shoal resume RUN_DIR`")
        left.append(said)
    if len(kept) < 2:
        raise UserError(f"compare: {len(kept)} of {len(found)} candidates have runs that have ended; two are needed: {left[0]}")
    return kept, left


def _common(found: Sequence[Candidate], left: list[str]) -> list[int]:
    """The training seeds that all candidates have. What has no partner is added to `left`. Raises UserError for too few."""
    own = [candidate.by_seed() for candidate in found]
    common = sorted(set(own[0]).intersection(*own[1:]))
    least = paired.fewest(ALPHA / (len(found) - 1))
    if len(common) < least:
        told = "; ".join(f"{letter} has {listed(list(seeds))}" for letter, seeds in zip(LETTERS, own, strict=False))
        best = f", because the p of {len(common)} pairs is {2 / 2 ** len(common):.2g} at best" if len(common) > 1 else ""
        raise UserError(
            f"{len(common)} training seed{'s' * (len(common) != 1)} in common ({told}): at least {least} are needed{best}; "
            f"run both with the same seeds: --seed 0 to --seed {least - 1}, say"
        )
    for candidate, seeds in zip(found, own, strict=True):
        if alone := [seed for seed in seeds if seed not in common]:
            left.append(f"{candidate.name}: seed{'s' * (len(alone) > 1)} {listed(alone)}, which not all candidates have")
        left += [f"{run.folder}: a newer run has its seed" for run in candidate.runs if run not in seeds.values()]
    for seed in common:
        for seeds in own[1:]:
            check_held_out(own[0][seed], seeds[seed])
    return common


def _of_seeds(found: Sequence[Candidate], seeds: Sequence[int], goal: str, episodes: int) -> tuple[str, bool, list[Floats]]:
    """(metric, whether smaller is better, its number for each seed of each candidate). episodes: that each run is to
    play; 0 takes the metrics that the runs wrote."""
    runs = [(own[seed], seed) for own in (candidate.by_seed() for candidate in found) for seed in seeds]
    flat = [_means(values) for _, values in judged_each(runs, episodes)] if episodes else [_last(run) for run, _ in runs]
    rows = [flat[at : at + len(seeds)] for at in range(0, len(flat), len(seeds))]
    every = [row for each in rows for row in each]
    metric, smaller = _chosen(goal, every, _whole(found) if episodes else None, "examples or episodes")
    for candidate, each in zip(found, rows, strict=True):
        for seed, row in zip(seeds, each, strict=True):
            if (value := row[metric]) is None or not math.isfinite(value):
                raise UserError(f"{metric} of {candidate.by_seed()[seed].folder} is no number at its end: name another metric")
    return metric, smaller, [np.array([row[metric] for row in each], dtype=np.float64) for each in rows]


def _whole(found: Sequence[Candidate]) -> set[str]:
    """The metrics that the runs wrote."""
    return {name for candidate in found for run in candidate.runs for name in run.metrics}


def _last(run: Run) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for row in run.dir.rows():
        found |= row["metrics"]
    return found


def _means(values: Values) -> dict[str, float | None]:
    return {name: float(np.mean(each)) for name, each in values.items()}


def _of_examples(found: Sequence[Candidate], goal: str, episodes: int) -> tuple[str, bool, str, list[Floats]]:
    """(metric, whether smaller is better, "examples", "episodes" or "clients", the metric's numbers for each candidate)."""
    runs = [candidate.runs[0] for candidate in found]
    for run in runs[1:]:
        check_held_out(runs[0], run)
    seen = judged_each([(run, 0) for run in runs], episodes)
    units = list(dict.fromkeys(unit for unit, _ in seen))
    values = [each for _, each in seen]
    metric, smaller = _chosen(goal, values, _whole(found), units[0])
    numbers = [each[metric] for each in values]
    if len(units) > 1 or len({len(each) for each in numbers}) > 1:
        told = ", ".join(f"{len(each)} {unit}" for (unit, _), each in zip(seen, numbers, strict=True))
        raise UserError(f"{found[0].name} and {found[1].name} are not judged on the same: {told}")
    there = np.isfinite(numbers[0])
    for run, each in zip(runs, numbers, strict=True):
        if (np.isfinite(each) != there).any() or np.isinf(each).any():
            at = int(np.flatnonzero(np.isfinite(each) != there)[0]) if (np.isfinite(each) != there).any() else 0
            raise UserError(f"{metric} of {run.folder} is no number for one of the {units[0]} ({at}): name another metric")
    return metric, smaller, units[0], [each[there] for each in numbers]


def _chosen(goal: str, rows: Sequence[Mapping[str, Any]], whole: set[str] | None = None, unit: str = "") -> tuple[str, bool]:
    """(metric, whether smaller is better). whole: metrics that a run has, perhaps as one number for all examples alone."""
    way, name = directed(goal)
    there = [each for each in ordered(rows[0]) if all(each in row for row in rows)]
    if not there:
        raise UserError(
            "compare: the runs have no metric in common: a job without held-out data and metrics has no number to compare"
        )
    if name and name not in there:
        if whole and name in whole:
            raise UserError(
                f"{name} has no number for each of the {unit}: it is one of all of them together, or of training; known are "
                f"{', '.join(there)}; what the runs wrote is compared over their training seeds (--by seed)"
            )
        some = "; not all runs have it" if any(name in row for row in rows) else ""
        raise UserError(f"no metric {name!r} to compare: {nearest(name, there)}{some}")
    name = name or there[0]
    return name, way == "min" if way else name.endswith(LOWER)


def _rows(
    found: Sequence[Candidate],
    values: Sequence[Floats],
    smaller: bool,
    unit: str,
    equal: float | None,
    find: float | None,
    sequential: bool,
) -> tuple[Versus, ...]:
    """Return a row for each candidate but the first, which it is compared with. The generator of resamples is always the same,
    so that the same runs give the same numbers."""
    first, *others = values
    pairs, level = len(first), ALPHA / len(others)
    if pairs < (least := paired.fewest(level)):
        more = "; give --episodes 100, say" if unit == "episodes" else ""
        raise UserError(f"{pairs} {unit}: at least {least} are needed to tell a difference from luck{more}")
    differences = [each - first for each in others]
    rng = np.random.Generator(np.random.Philox(key=key(0, "compare")))
    if sequential:
        looked = [paired.always(each, ALPHA) for each in differences]
        ps, intervals = [p for p, _, _ in looked], [(low, high) for _, low, high in looked]
    else:
        ps = [paired.sign_flips(each, rng) for each in differences]
        intervals = [paired.interval(each, rng, ALPHA) for each in differences]
    adjusted = paired.holm(ps)
    apart = [None if equal is None else _equality(each, equal, rng, sequential) for each in differences]
    same = [None] * len(apart) if equal is None else paired.holm([p for p in apart if p is not None])
    rows = []
    for at, each in enumerate(differences):
        difference, spread = float(np.mean(each)), float(np.std(each, ddof=1))
        verdict = _verdict(-difference if smaller else difference, adjusted[at], same[at])
        reach, aim, many = (None, find, None) if sequential else _power(spread, pairs, level, equal, find, verdict)
        both = float(np.var(first, ddof=1) + np.var(others[at], ddof=1))
        rows.append(
            Versus(
                letter=LETTERS[at + 1],
                name=found[at + 1].name,
                mean=float(np.mean(others[at])),
                difference=difference,
                low=intervals[at][0],
                high=intervals[at][1],
                p=ps[at],
                p_holm=adjusted[at],
                p_equal=same[at],
                verdict=verdict,
                spread=spread,
                findable=reach,
                find=aim,
                needed=many,
                unpaired=both / spread**2 if spread > 0 else None,
            )
        )
    return tuple(rows)


def _equality(differences: Floats, margin: float, rng: np.random.Generator, sequential: bool) -> float:
    if not sequential:
        return paired.equality(differences, margin, rng)
    if abs(np.mean(differences)) >= margin:
        return 1.0
    return max(paired.always(differences + shift, ALPHA)[0] for shift in (margin, -margin))


def _verdict(gain: float, p: float, p_equal: float | None) -> str:
    """gain: the difference, above 0 where the candidate is better than A."""
    if p_equal is not None and p_equal <= ALPHA:
        return EQUAL
    if p <= ALPHA:
        return "better" if gain > 0 else "worse"
    return SAME if p_equal is None else OPEN


def _power(
    spread: float, pairs: int, level: float, equal: float | None, find: float | None, verdict: str
) -> tuple[float | None, float | None, int | None]:
    """(findable, find, needed) of a row; None where there is no spread to tell them from, or nothing more to find. Unless the
    user says what to find, it is half of what the pairs that are there find."""
    if spread <= 0:
        return None, find, None
    reach = paired.findable(spread, pairs, level)
    if find is None and verdict == OPEN and equal is not None:
        return reach, equal, paired.needed_for_equality(equal, spread, level)
    if find is None and verdict != SAME:
        return reach, None, None
    aim = find if find is not None else float(f"{reach / 2:.1g}")
    return reach, aim, paired.needed(aim, spread, level)
