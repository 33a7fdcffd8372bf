"""A job's settings: frozen dataclasses whose fields know their range and what they mean.

The one idea: one description of a setting serves the constructor, `key=value` on the command line, config.toml, the error
that a wrong value gets, and `shoal jobs`. Nothing here needs more than the standard library, so that an edge actor has it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

from shoal.protocol.errors import UserError

S = TypeVar("S")
JOURNALS = ("auto", "off", "ids", "payload")
"""auto: ids where actors outlive the coordinator, which is where it is bound for others; off where they end with it, and
nobody is left who was promised anything."""


@dataclass(frozen=True, slots=True)
class Range:
    """What a setting may be. least and most are included, above is not."""

    about: str
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.choices:
            return "one of " + ", ".join(self.choices)
        bounds = {"from": self.least, "above": self.above, "to": self.most, "below": self.below}
        return " ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None) or "any"

    def holds(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if not isinstance(value, int | float) or isinstance(value, bool):
            return True
        return math.isfinite(value) and not (
            (self.least is not None and value < self.least)
            or (self.most is not None and value > self.most)
            or (self.above is not None and value <= self.above)
            or (self.below is not None and value >= self.below)
        )


def option(default: Any, about: str, **bounds: Any) -> Any:
    """A field of a settings dataclass: its default, what it is, and its range."""
    return field(default=default, metadata={"range": Range(about, **bounds)})


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error's line: the name that was probably meant, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "known are " + ", ".join(names)


def configured(settings: S, changes: Mapping[str, Any]) -> S:
    """The same settings with changes, whose values may be strings. Raises UserError naming field, value and range."""
    known = {f.name: f for f in fields(settings)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, given in changes.items():
        if name not in known:
            raise UserError(f"unknown setting {name!r}: {nearest(name, known)}")
        default = known[name].default
        values[name] = coerced(name, given, default, known[name].metadata["range"])
    changed: S = replace(settings, **values)  # type: ignore[type-var]
    return changed


def coerced(name: str, given: Any, default: Any, allowed: Range) -> Any:
    try:
        value = _as(type(default), given)
    except (ValueError, TypeError, OverflowError):
        kind = {int: "a whole number", float: "a number", bool: "true or false", tuple: "whole numbers like 64,64"}
        must = ", ".join([kind.get(type(default), "text")] + [str(allowed)] * (str(allowed) != "any"))
        raise UserError(f"{name}={shown(given)}: must be {must}; {name}={shown(default)}, say") from None
    if not allowed.holds(value):
        say = nearest(value, allowed.choices) if allowed.choices else f"{name}={shown(default)}, say"
        raise UserError(f"{name}={shown(given)}: allowed is {allowed}; {say}")
    return value


def _as(kind: type, given: Any) -> Any:
    if kind is bool:
        return _truth(given)
    if kind is int:
        number = float(str(given).replace("_", ""))
        if not number.is_integer() or isinstance(given, bool):
            raise ValueError
        return int(str(given)) if str(given).lstrip("-").isdigit() else int(number)
    if kind is float:
        if isinstance(given, bool):
            raise ValueError
        return float(given)
    if kind is tuple:
        parts = given.replace(",", " ").split() if isinstance(given, str) else [given] if isinstance(given, int) else given
        return tuple(int(part) for part in parts)
    if not isinstance(given, str):
        raise ValueError
    return given


def _truth(given: Any) -> bool:
    words = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}
    if str(given).lower() not in words:
        raise ValueError
    return words[str(given).lower()]


def shown(value: Any) -> str:
    """As one types it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def plain(settings: Any) -> dict[str, Any]:
    """As plain data: for config.toml and for Welcome."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()}


def described(settings: Any) -> list[tuple[str, str, str]]:
    """A row a setting: `name=value` as one types it, what is allowed, what it is."""
    ranges = [(each.name, each.metadata["range"]) for each in fields(settings)]
    return [(f"{name}={shown(getattr(settings, name))}", str(allowed), allowed.about) for name, allowed in ranges]


def pairs(words: Iterable[str]) -> dict[str, str]:
    """From the command line's key=value."""
    found: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or not name:
            raise UserError(f"{word!r} is not of the form key=value; lr=0.1, say")
        found[name] = value
    return found
