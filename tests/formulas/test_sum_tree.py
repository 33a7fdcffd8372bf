"""The tree of sums against running sums of all numbers."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.aggregators.sum_tree import SumTree


@pytest.mark.parametrize("size", [1, 5, 16, 17, 300, 5000])
def test_a_mark_finds_the_place_at_which_the_running_sum_exceeds_it(size: int) -> None:
    rng = np.random.default_rng(size)
    tree, plain = SumTree(size), np.zeros(size)
    for _ in range(20):
        places = rng.integers(0, size, size=rng.integers(1, 40))
        numbers = rng.integers(0, 4, size=len(places)).astype(float)  # small whole numbers: sums are exact, and many are 0
        tree.put(places, numbers)
        for place, number in zip(places, numbers, strict=True):  # of equal places the last counts
            plain[place] = number
        assert tree.leaves.tolist() == plain.tolist()
        assert tree.total == plain.sum()
        if tree.total:
            marks = rng.random(50) * tree.total
            assert tree.find(marks).tolist() == np.searchsorted(plain.cumsum(), marks, side="right").tolist()


def test_a_number_of_zero_is_never_found() -> None:
    tree = SumTree(1000)
    tree.put(np.arange(0, 1000, 3), np.random.default_rng(0).random(334) + 1e-9)
    marks = np.concatenate([np.linspace(0, tree.total, 4001), [tree.total * (1 + 1e-12)]])  # rounding may go beyond the total
    assert (tree.find(marks) % 3 == 0).all()


def test_a_tree_follows_from_its_leaves_alone() -> None:
    rng = np.random.default_rng(1)
    grown, filled = SumTree(777), SumTree(777)
    for _ in range(300):
        places = rng.integers(0, 777, size=9)
        grown.put(places, rng.random(9) * 10.0 ** rng.integers(-9, 9))
    filled.put(np.arange(777), grown.leaves.copy())
    for one, other in zip(grown.levels, filled.levels, strict=True):
        assert one.tobytes() == other.tobytes()
