"""The finding of a case, and the ledger's line that is made of it.

The one idea: figure, goal, floor and peer have one unit, so one picture shows them all; `asked` says the goal in words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Finding:
    """The result of a case. figure: what Shoal reaches. floor: what the machine allows. peer: what another framework reaches.
    All three are measured in the same run, in `unit`; None: not measured.

    ratio: figure to floor, or to peer if there is no floor. holds: True if the goal is reached; None if that was not
    measured. asked: the goal in words. details: further results, as plain data.
    """

    figure: float | None
    unit: str
    goal: float | None = None
    floor: float | None = None
    peer: float | None = None
    ratio: float | None = None
    holds: bool | None = None
    asked: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


Case: TypeAlias = Callable[[bool], Finding]
"""Measures something and returns the finding; called in a process of its own. quick: measure in at most 50 s."""

FIELDS = ("case", "figure", "unit", "goal", "floor", "peer", "ratio", "holds", "seconds", "versions")
"""The first fields of a JSON line, in this order; asked, details and quick follow."""


def line(name: str, finding: Finding, seconds: float, versions: Mapping[str, str], quick: bool) -> dict[str, Any]:
    """Returns a JSON line as a dict. Numbers keep four significant digits; further digits would be noise."""
    first = {
        "case": name,
        "figure": short(finding.figure),
        "unit": finding.unit,
        "goal": short(finding.goal),
        "floor": short(finding.floor),
        "peer": short(finding.peer),
        "ratio": short(finding.ratio),
        "holds": finding.holds,
        "seconds": round(seconds, 1),
        "versions": dict(versions),
    }
    return {**first, "asked": finding.asked, "details": short(finding.details), "quick": quick}


def short(value: Any) -> Any:
    """Returns the value with its floats at four significant digits, through maps and lists."""
    if isinstance(value, Mapping):
        return {str(key): short(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [short(one) for one in value]
    if isinstance(value, float):
        rounded = float(f"{value:.4g}")
        return int(rounded) if rounded.is_integer() and abs(rounded) >= 1000 else rounded
    return value
