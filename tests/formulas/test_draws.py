"""Draws are functions of (seed, purpose, numbers), also those that a user's code makes from global generators."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from shoal.protocol.draws import globally


def drawn() -> tuple[float, ...]:
    return (random.random(), float(np.random.rand()), float(np.random.normal()), float(torch.rand(())))


def states() -> list[Any]:
    return [random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()]


def test_global_generators_give_the_same_numbers_inside_a_block_whatever_was_drawn_before() -> None:
    with globally(3, "task", 5, 8):
        first = drawn()
    drawn()
    with globally(3, "task", 5, 8):
        assert drawn() == first
    for other in ((4, "task", 5, 8), (3, "data", 5, 8), (3, "task", 5, 9)):
        with globally(*other):  # type: ignore[arg-type]
            assert not set(drawn()) & set(first)


def test_a_block_leaves_the_global_generators_as_they_were_also_after_an_error() -> None:
    np.random.normal()  # the second half of the pair is kept in the generator's state
    before = states()
    with pytest.raises(ZeroDivisionError), globally(0, "task"):
        drawn()[len(drawn()) // 0]
    assert states() == before
