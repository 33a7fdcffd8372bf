"""Many short calls of one function as one call.

The one idea: for calls of a microsecond, what travels and what is accounted must be per hundreds of them; what a call is (its
seed, its exception, its place among the results) stays per call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

LONG = 0.05  # seconds after which the calls that have not begun are left, because they may be made elsewhere


@dataclass(slots=True)
class Many:
    """items: arguments of each call. first: number of the first call; the others follow."""

    items: list[tuple[Any, ...]]
    first: int

    def made(
        self,
        function: Callable[..., Any],
        begins: Callable[[tuple[int, int, Any]], object],
        seed: int,
        marks: object,
        told: Callable[[BaseException], bytes],
    ) -> Made:
        """Make the calls, at least one of them. begins: is told (seed, number of the call, marks) before each. told: an
        exception as a parcel."""
        values: list[Any] = []
        raised: list[tuple[int, bytes]] = []
        began = perf_counter()
        until = began + LONG
        for number, args in enumerate(self.items, self.first):
            begins((seed, number, marks))
            try:
                values.append(function(*args))
            except BaseException as error:  # noqa: BLE001  a user's function may raise anything, and even call sys.exit
                raised.append((len(values), told(error)))
                values.append(None)
            if perf_counter() > until:
                break
        return Made(values, raised, perf_counter() - began)


@dataclass(slots=True)
class Made:
    """values: results of the calls that were made. raised: (place, exception and traceback as a parcel) of those that raised.
    seconds: of all."""

    values: list[Any]
    raised: list[tuple[int, bytes]]
    seconds: float

    def mended(self, travels: Callable[[Any], object], told: Callable[[BaseException], bytes]) -> Made:
        """The same, with an exception in the place of each value that cannot travel."""
        for place, value in enumerate(self.values):
            try:
                travels(value)
            except BaseException as error:  # noqa: BLE001  an object's own __reduce__ may raise anything
                self.raised.append((place, told(error)))
                self.values[place] = None
        return self
