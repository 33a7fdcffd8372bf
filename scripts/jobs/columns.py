"""A column of numbers in the place of a function of the client.

The one idea: a user who has a number for each client need not write a function that looks it up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from shoal.protocol.errors import UserError, signed


@dataclass(frozen=True)
class Column:
    """A function (client, examples) -> the client's number, from a column with a number for each client."""

    numbers: tuple[float, ...]

    @property
    def __name__(self) -> str:
        return f"{len(self.numbers)} weights"

    def __call__(self, client: int, examples: Any) -> float:
        return self.numbers[client]


def column_of(given: Any, name: str = "weighting") -> Any:
    """The column in a list, a tuple, an array or a series; a text or a function itself. Raises UserError unless all values of
    the column are numbers above 0. name: of the setting."""
    if isinstance(given, str) or callable(given):
        return given
    form = "a function (client, examples) -> weight, or a list with a weight above 0 for each client"
    try:
        numbers = tuple(float(number) for number in given)
    except (TypeError, ValueError):
        raise UserError(f"{name}={signed(given)}: expected {form}") from None
    odd = next((client for client, number in enumerate(numbers) if not 0 < number < math.inf), None)
    if odd is not None:
        raise UserError(f"{name}: the weight of client {odd} is {numbers[odd]:g}; expected {form}")
    return Column(numbers)
