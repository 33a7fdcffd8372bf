"""Errors by fault: a peer's, and the user's. Faults of Shoal itself are ordinary exceptions and end the program."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any


class ProtocolError(ValueError):
    """A peer's message breaks the protocol. It is reported and dropped; it never ends the program."""


def printable(text: str, most: int) -> str:
    """A peer's text as one line that is safe to print and to log: cut after `most` characters, with every character that is
    not printable escaped."""
    cut = text[:most] + "..." * (len(text) > most)
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in cut)


class UserError(ValueError):
    """A mistake that the user can put right. The command line prints its one line and exits with 2; no traceback."""


class WorkerLost(RuntimeError):  # noqa: N818  the word that people look for
    """The process of a call ended, as often as the call may be tried; or a pool has no processes any more."""


class Late(TimeoutError):  # noqa: N818  the word of the interface
    """A server of predictions gave no answer within the request's deadline, or had no room for the request."""


class GangError(RuntimeError):
    """A rank of a gang ended with an error. code: of torchrun. log: what all ranks wrote, its last bytes if there are many."""

    def __init__(self, code: int, log: str) -> None:
        super().__init__(code, log)
        self.code, self.log = code, log

    def __str__(self) -> str:
        return f"torchrun ended with code {self.code}; the end of its log:\n{self.log[-8_000:]}"


class NeedError(UserError):
    """A call needs more than the machine has."""


class AwayError(UserError):
    """A client dropped out of its task: no fault of anybody's."""


def within(name: str, value: float, *, above: float | None = None, first: float = 0.0, below: float = math.inf) -> None:
    """Raises UserError unless first <= value < below; if `above` is given, unless above < value < below."""
    if not ((value > above if above is not None else value >= first) and value < below):
        lowest = f"above {above:g}" if above is not None else f"from {first:g}"
        highest = f" to below {below:g}" if math.isfinite(below) else ""
        raise UserError(f"{name}={value!r}: must be a number {lowest}{highest}")


def binds(given: Any, *arguments: object, **named: object) -> bool:
    """True if `given` is a function that can be called with these arguments, and for a function of C without a signature."""
    if not callable(given):
        return False
    try:
        inspect.signature(given).bind(*arguments, **named)
    except ValueError:  # no signature
        return True
    except TypeError:
        return False
    return True


def unfit(given: Any, parts: Mapping[str, int]) -> list[str]:
    """The functions among `parts`, name -> number of arguments, that an object lacks or that take others, as an error names
    them."""
    found = {name: getattr(given, name, None) for name in parts}
    odd = {name: part for name, part in found.items() if not binds(part, *[None] * parts[name])}
    return [f"{name} (its {signed(part)} takes other arguments)" if callable(part) else name for name, part in odd.items()]


def takes(part: str, given: Any, form: str, *arguments: object, **named: object) -> None:
    """Raises UserError unless `given` is a function that can be called with these arguments. part: its name in the job. form:
    the expected value, in words."""
    if not binds(given, *arguments, **named):
        raise UserError(f"{part} is {signed(given)}: expected {form}")


def own(value: Any) -> Any:
    """A number of numpy's as Python's own number; any other value as it is."""
    if isinstance(value, bool | int | float) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def said(error: BaseException) -> str:
    """The text of an exception; words in its place if the exception's own code fails."""
    try:
        return str(error)
    except BaseException:  # noqa: BLE001  an exception is the user's object
        return "an exception that cannot say what it is"


def signed(given: Any) -> str:
    """A user's value, for an error: a function with its arguments, a text or a number as it is, anything else by its type."""
    if callable(given):
        name = str(getattr(given, "__name__", type(given).__name__))
        try:
            return f"{name}{inspect.signature(given)}"[:200]
        except ValueError:  # a function of C
            return name
    return (
        repr(given)[:100]
        if given is None or isinstance(given, str | int | float)
        else f"an object of type {type(given).__name__}"
    )
