"""Values compare, hash, match and are replaced as frozen dataclasses do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from shoal.protocol.value import value


@value
class Point:
    x: int
    y: float = 2.0


@value
class Step:
    x: int
    y: float = 2.0


@dataclass(frozen=True, slots=True)
class Frozen:
    x: int
    y: float = 2.0


@pytest.mark.parametrize("kind", [Point, Frozen])
def test_a_value_behaves_like_a_frozen_dataclass(kind: Any) -> None:
    one = kind(1)
    assert one == kind(1)
    assert one != kind(1, 3.0)
    assert hash(one) == hash(kind(1))
    assert repr(one).endswith("(x=1, y=2.0)")
    assert replace(one, y=5.0) == kind(1, 5.0)
    match one:
        case Point(x, y) | Frozen(x, y):
            assert (x, y) == (1, 2.0)
        case _:
            pytest.fail("no match")
    with pytest.raises((AttributeError, TypeError)):
        one.z = 3  # there are slots


def test_values_of_two_kinds_are_never_equal() -> None:
    assert Point(1) != Step(1)  # type: ignore[comparison-overlap]
    assert len({Point(1), Step(1), Point(1)}) == 2
