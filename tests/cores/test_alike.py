"""Large buffers that several parcels have in common."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.protocol.alike import LEAST, Alike
from shoal.protocol.trusted import LARGE, Parcel, opened, pack, pack_arguments, whole

MANY = LEAST // 8 + 3


def test_equal_arrays_lie_in_memory_once_whichever_objects_they_are() -> None:
    alike, array = Alike(), np.arange(float(MANY))
    first = pack_arguments((array, 1), {}, alike)
    again = pack_arguments((), {"x": array.copy(), "y": np.zeros(MANY)}, alike)
    assert first.segment is not None
    assert again.others == (first.segment,)
    assert again.nbytes < first.nbytes + 500
    _, named = opened(again.data)
    np.testing.assert_array_equal(named["x"], array)
    np.testing.assert_array_equal(named["y"], np.zeros(MANY))
    third = pack_arguments((array,), {}, alike)
    assert (third.segment, third.others) == (None, (first.segment,))
    np.testing.assert_array_equal(opened(third.data)[0][0], array)
    np.testing.assert_array_equal(opened(whole(again.data))[1]["x"], array)


@pytest.mark.parametrize("at", [0, 1, MANY // 2, MANY // 2 + 1, MANY - 1])
def test_an_array_that_was_written_since_is_another_one(at: int) -> None:
    alike, array = Alike(), np.arange(float(MANY))
    first = pack(array, alike=alike)
    array[at] = -1.0
    again = pack(array, alike=alike)
    assert again.others == ()
    assert opened(again.data)[at] == -1.0
    assert opened(first.data)[at] == at


def test_bytes_of_any_length_are_compared_to_the_last_one() -> None:
    alike = Alike()
    for nbytes in (LEAST, LEAST + 1, LEAST + 7, LEAST + 9):
        data = np.frombuffer(bytes(range(256)) * (nbytes // 256 + 1), np.uint8)[:nbytes].copy()
        first = pack(data, alike=alike)
        assert pack(data, alike=alike).others == (first.segment,)
        data[-1] ^= 1
        assert pack(data, alike=alike).others == ()


def test_memory_that_nobody_holds_is_given_back_and_not_found_again() -> None:
    alike = Alike()
    parcels: list[Parcel] = [pack(np.full(MANY, float(x)), alike=alike) for x in range(5)]
    assert len(alike) == 5
    parcels.clear()
    assert len(alike) == 0
    assert pack(np.zeros(MANY), alike=alike).others == ()


def test_small_arrays_are_not_looked_for() -> None:
    alike = Alike()
    array = np.zeros(LARGE // 8)
    assert pack(array, alike=alike).segment is not None
    assert pack(array, alike=alike).others == ()
    assert len(alike) == 0
