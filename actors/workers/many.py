"""Many short calls of one function as one call.

The one idea: for calls of a microsecond, what travels and what is accounted must be per hundreds of them; what a call is (its
seed, its exception, its place among the results) stays per call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import Any

LONG = 0.05  # seconds after which the calls that have not begun are left, because they may be made elsewhere
QUICK = 1e-4  # seconds of calls between two looks at whether further ones may begin, about
BLOCK = 64  # calls between two such looks, at most


@dataclass(slots=True)
class Many:
    """columns: each argument of the calls, as many as there are calls. first: number of the first call; the others follow."""

    columns: tuple[Sequence[Any], ...]
    first: int

    def made(
        self,
        function: Callable[..., Any],
        begins: Callable[[Sequence[Any]], object],
        claim: Callable[[int], bool],
        told: Callable[[BaseException], bytes],
    ) -> Made:
        """Make the calls, at least some of them. begins: is given the results, whose number says which call is being made.
        claim: is told how many calls will have begun, before they do, and says whether further ones may. told: an exception as
        a parcel."""
        values: list[Any] = []
        raised: list[tuple[int, bytes]] = []
        many, block = len(self.columns[0]), 1
        calls = map(function, *self.columns)  # goes on behind a call that raised
        append = values.append
        begins(values)
        began = at = perf_counter()
        until = began + LONG
        while (done := len(values)) < many and at <= until:
            end = min(many, done + block)
            if not claim(end) and done:
                break
            try:
                for value in islice(calls, end - done):
                    append(value)
            except BaseException as error:  # noqa: BLE001  a user's function may raise anything, and even call sys.exit
                raised.append((len(values), told(error)))
                append(None)
            else:
                if len(values) < end:  # a StopIteration of the function itself
                    raised.append((len(values), told(StopIteration())))
                    append(None)
            now = perf_counter()
            block = max(1, min(BLOCK, int(QUICK * (len(values) - done) / max(now - at, 1e-9))))
            at = now
        return Made(values, raised, at - began)


@dataclass(slots=True)
class Made:
    """values: results of the calls that were made. raised: (place, exception and traceback as a parcel) of those that raised.
    seconds: of all."""

    values: list[Any]
    raised: list[tuple[int, bytes]]
    seconds: float

    def mended(self, travels: Callable[[Any], object], told: Callable[[BaseException], bytes]) -> Made:
        """Return the results with an exception in the place of each value that cannot travel."""
        for place, value in enumerate(self.values):
            try:
                travels(value)
            except BaseException as error:  # noqa: BLE001  an object's own __reduce__ may raise anything
                self.raised.append((place, told(error)))
                self.values[place] = None
        return self
