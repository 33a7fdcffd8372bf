"""One generator that takes one key after the other draws what numpy's own generators draw."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.protocol import streams
from shoal.protocol.draws import key
from shoal.protocol.streams import Streams, keys_of

NUMBERS = [0, 1, 2**31, 2**32, 2**64 - 1, 2**96, 2**127, 2**128 - 1, *(key(3, "shuffle", client, 7) for client in range(50))]


def test_the_keys_are_those_that_numpy_spreads_a_number_over() -> None:
    theirs = [np.random.Philox(number).state["state"]["key"] for number in NUMBERS]
    assert np.array_equal(keys_of(NUMBERS), theirs)
    assert keys_of([]).shape == (0, 2)


@pytest.mark.parametrize("spreads", [True, False])
def test_a_stream_is_begun_as_if_its_generator_were_new(spreads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not spreads:
        monkeypatch.setattr(streams, "MIX_L", np.uint32(3))  # numpy's way is another one than ours
    made = Streams()
    assert made._spreads is spreads
    keys = made.keys(NUMBERS)
    for number, its in (*zip(NUMBERS, keys, strict=True), (NUMBERS[5], keys[5])):
        ours, new = made.begin(its), np.random.Generator(np.random.Philox(number))
        assert ours.integers(0, 2**31, dtype=np.int32) == new.integers(0, 2**31, dtype=np.int32)  # leaves half a word behind
        for n in (1, 7, 1000):
            assert np.array_equal(ours.permutation(n), new.permutation(n))
        assert ours.normal() == new.normal()
