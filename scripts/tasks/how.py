"""The wishes of a call (retries, priority, time), checked when it is submitted.

The one idea: a wish that cannot be kept, or that contradicts another, is refused in one line before the call exists.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from shoal.coordinator.deciding.resources import ONE_CORE, Need
from shoal.protocol.errors import UserError, own, signed

Exceptions: TypeAlias = type[BaseException] | tuple[type[BaseException], ...]


class How(NamedTuple):
    """Arguments of `submit` that say how a call is made. timeout: seconds; 0: as long as it takes. retry_on: exceptions after
    which the call is made again. cost: seconds that its caller expects it to take; None: what the pool has learned."""

    priority: float = 0.0
    retries: int = 2
    once: bool = False
    need: Need = ONE_CORE
    key: str = ""
    timeout: float = 0.0
    retry_on: tuple[type[BaseException], ...] = ()
    cost: float | None = None


def how(
    priority: float,
    retries: int,
    once: bool,
    need: Need,
    key: str,
    timeout: float | None = None,
    retry_on: Exceptions = (),
    cost: float | None = None,
) -> How:
    """The arguments as one value. Raises UserError, one line, for an argument that cannot be kept."""
    priority, timeout, cost = own(priority), own(timeout), own(cost)
    if not _number(priority):
        raise UserError(f"priority={priority!r}: must be a number")
    retries = counted("retries", retries, 0)
    if not isinstance(need, Need):
        raise UserError(f"need={need!r}: must be a shoal.Need; need=shoal.Need(cores=2, memory='1G'), say")
    if timeout is not None and not (_number(timeout) and timeout > 0):
        raise UserError(f"timeout={timeout!r}: must be a number of seconds above 0, or None")
    if cost is not None and not (_number(cost) and cost >= 0):
        raise UserError(f"cost={cost!r}: must be a number of seconds from 0, or None")
    if not isinstance(key, str):
        raise UserError(f"key={key!r}: must be text")
    kinds = retry_on if isinstance(retry_on, tuple) else (retry_on,)
    if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
        raise UserError(f"retry_on={retry_on!r}: must be exception types, as in retry_on=(OSError,)")
    if kinds and once:
        raise UserError(f"once=True and retry_on={retry_on!r}: a call that begins once is not made again; give one of the two")
    return How(priority, retries, once, need, key, timeout or 0.0, kinds, cost)


def counted(name: str, value: Any, least: int, below: int = 2**63) -> int:
    """The value as an int, if it is a whole number from `least`. Raises UserError."""
    value = own(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < below:
        raise UserError(f"{name}={value!r}: must be a whole number from {least}" + " to 2**63 - 1" * (least < 0))
    return value


def _number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int larger than any float
        return False


def until(timeout: float | None) -> float | None:
    """Return the end of a map's time, in seconds of the monotonic clock; None: never. Raises UserError."""
    timeout = own(timeout)
    if timeout is not None and not _number(timeout):
        raise UserError(f"timeout={timeout!r}: must be a number of seconds, or None")
    return None if timeout is None else time.monotonic() + timeout


def costs(cost: Callable[..., float], args: tuple[Any, ...]) -> float:
    """Seconds that a map's `cost` says for a call. Raises UserError if these are no seconds."""
    seconds = cost(*args)
    try:
        its = float(seconds)
    except (TypeError, ValueError, OverflowError):
        its = math.nan
    if not (math.isfinite(its) and its >= 0):
        raise UserError(f"cost gave {signed(seconds)} for an item: must be a number of seconds from 0")
    return its
