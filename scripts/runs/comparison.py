"""The findings of a comparison, as data and in words.

The one idea: the lines for a person, `--json` and what Python gets are one object, so that they cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SAME, EQUAL, OPEN = "same within the noise", "equal", "not shown to be equal"


@dataclass(frozen=True)
class Versus:
    """A candidate against the first, A.

    letter, name, mean: the candidate's. difference: its mean less A's. low, high: the 95 % interval of the difference. p: of no
    difference. p_holm: p adjusted for the number of comparisons; the verdict goes by it. p_equal: of a difference of `equal` or
    more, adjusted likewise; None if equality was not asked for. verdict: "better", "worse", "same within the noise", "equal" or
    "not shown to be equal". spread: standard deviation of the differences. findable: difference that as many pairs find 80
    times in 100; None if there is no spread, and with sequential bounds. find, needed: `needed` pairs find the difference
    `find`, or show the equality that was asked for, 80 times in 100; None where there is nothing more to find. unpaired: how
    many times as many numbers an unpaired comparison would need for an interval of this width; None if there is no spread.
    """

    letter: str
    name: str
    mean: float
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    p_equal: float | None
    verdict: str
    spread: float
    findable: float | None
    find: float | None
    needed: int | None
    unpaired: float | None


@dataclass(frozen=True, repr=False)
class Comparison:
    """The findings of a comparison; `print` shows what `shoal compare` prints.

    metric: the metric that is compared. goal: "max" or "min". by: what pairs are: "seeds", "examples", "episodes" or "clients".
    pairs: their number. seeds: the training seeds. alpha: 0.05. sequential: the numbers hold at every look. equal: the margin
    of equality that was asked about. name, mean: of A. rows: each other candidate against A. left_out: runs without a part in
    this, and why. `found["B"]` is the row of B.
    """

    metric: str
    goal: str
    by: str
    pairs: int
    seeds: tuple[int, ...]
    alpha: float
    sequential: bool
    equal: float | None
    name: str
    mean: float
    rows: tuple[Versus, ...]
    left_out: tuple[str, ...]

    def __getitem__(self, letter: str) -> Versus:
        return next(row for row in self.rows if row.letter == letter)

    @property
    def shown(self) -> bool:
        """False if equality was asked about and not shown of every candidate."""
        return self.equal is None or all(row.verdict == EQUAL for row in self.rows)

    def plain(self) -> dict[str, Any]:
        """Return all fields as plain data: the object that `--json` prints."""
        return asdict(self)

    def __repr__(self) -> str:
        return "\n".join(_lines(self))


def _lines(found: Comparison) -> list[str]:
    names = {"A": found.name, **{row.letter: row.name for row in found.rows}}
    lines = [f"{letter}  {name}" for letter, name in names.items()]
    kind = "valid at every look" if found.sequential else f"paired over {found.pairs:,} {found.by}"
    table = []
    digits = max(map(_digits, found.rows))
    for row in found.rows:
        interval = f"[{_number(row.low, digits, '+')}, {_number(row.high, digits, '+')}]"
        cells = [found.metric, f"A {_number(found.mean, digits)}", f"{row.letter} {_number(row.mean, digits)}"]
        table.append([*cells, f"{row.letter} - A = {_number(row.difference, digits, '+')}", f"95 % interval {interval}", kind])
    wide = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines += ["   ".join(cell.ljust(width) for cell, width in zip(row, wide, strict=True)).rstrip() for row in table]
    lines += [_said(found, row) for row in found.rows]
    return lines + [f"left out: {why}" for why in found.left_out]


def _said(found: Comparison, row: Versus) -> str:
    """The verdict on one candidate, and what it takes to find more."""
    words = {"better": f"{row.letter} is better", "worse": f"{row.letter} is worse", SAME: f"{row.letter} and A are the {SAME}"}
    words |= {EQUAL: f"{row.letter} and A are equal within {found.equal:g}" if found.equal else ""}
    words |= {OPEN: f"{row.letter} and A are {OPEN} within {found.equal:g}" if found.equal else ""}
    test = "p at any look" if found.sequential else "sign-flip p"
    holm = f", {row.p_holm:.2g} after Holm for {len(found.rows)} comparisons" if len(found.rows) > 1 else ""
    asked = "" if row.p_equal is None else f"; of a larger difference p = {row.p_equal:.2g}"
    return f"verdict: {words[row.verdict]} ({test} = {row.p:.2g}{holm}{asked}). {_outlook(found, row)}".rstrip()


def _outlook(found: Comparison, row: Versus) -> str:
    if row.spread == 0:
        return f"All {found.pairs:,} {found.by} have the same difference." if row.difference else "The two never differ."
    if row.findable is None:
        return ""
    said = f"With this spread {found.pairs:,} {found.by} find {row.findable:.2g} or more, 80 times in 100"
    if row.find is None or row.needed is None:
        return f"{said}."
    verb = "show equality within" if row.find == found.equal else "find"
    first = found.seeds[0]
    seeds = f" (shoal sweep ... seed={first}..{first + row.needed - 1})"
    which = {"seeds": seeds, "episodes": f" (--episodes {row.needed})"}.get(found.by, "")
    return f"{said}; to {verb} {row.find:g} you need {row.needed:,} {found.by}{which}."


def _digits(row: Versus) -> int:
    """Decimals that show the interval's half width with two digits."""
    half = (row.high - row.low) / 2
    half = half if 0 < half < math.inf else abs(row.difference) or abs(row.mean) / 10 or 1.0
    return min(max(0, 1 - math.floor(math.log10(half))), 12)


def _number(value: float, digits: int, sign: str = "") -> str:
    return f"{value:{sign},.{digits}f}"


def listed(seeds: Sequence[int]) -> str:
    """Seeds as a person reads them: "0..4", or "0, 3, 9"."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}..{seeds[-1]}"
    shown = ", ".join(map(str, seeds[:8]))
    return shown + (", ..." if len(seeds) > 8 else "")
