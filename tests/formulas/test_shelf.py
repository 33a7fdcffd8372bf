"""One copy of the examples for several processes: the first that needs them makes them, the others map them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.envs.datasets import Examples
from shoal.envs.partition import dirichlet
from shoal.envs.population import Population
from shoal.envs.shelf import Shelf

RNG = np.random.Generator(np.random.Philox(5))
X, Y = RNG.integers(0, 256, (90, 2, 3), np.uint8), RNG.integers(0, 4, 90)


def made(weight: bool = True, held_out: bool = True) -> Population:
    weights = np.linspace(0, 1, 90) if weight else None
    held = Examples(X[:7], Y[:7]) if held_out else None
    return Population.divided(Examples(X, Y, weights, scale=255), dirichlet(Y, 9, seed=1), held, ("a note",))


def same(found: Population, expected: Population) -> None:
    assert (found.clients, found.notes) == (expected.clients, expected.notes)
    assert (found.held_out is None) == (expected.held_out is None)
    pairs = [(found.examples(client), expected.examples(client)) for client in range(found.clients)]
    pairs += [(found.held_out, expected.held_out)] if found.held_out is not None else []  # type: ignore[list-item]
    for one, other in pairs:
        assert one.scale == other.scale
        for name in ("x", "y", "weight"):
            a, b = getattr(one, name), getattr(other, name)
            assert (a is None) == (b is None)
            if a is not None:
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)


def none() -> Population:
    raise AssertionError("made a second time")


@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("held_out", [True, False])
def test_the_second_to_ask_gets_what_the_first_made(weight: bool, held_out: bool) -> None:
    shelf, expected = Shelf(), made(weight, held_out)
    same(shelf.population("key", lambda: made(weight, held_out)), expected)
    same(shelf.population("key", none), expected)


def test_another_population_is_each_processs_own() -> None:
    shelf = Shelf()
    shelf.population("key", made)
    same(shelf.population("other", lambda: made(False)), made(False))
    same(shelf.population("key", none), made())


def test_a_population_that_is_a_function_is_not_shared() -> None:
    shelf = Shelf()
    given = Population(3, lambda client: Examples(X[client : client + 2], Y[client : client + 2]))
    assert shelf.population("key", lambda: given) is given
    same(shelf.population("key", made), made())  # the place is free


def forked(act: Any) -> int:
    """The exit code of a forked process that does `act`, or 9 if that raised."""
    if (pid := os.fork()) == 0:
        try:
            act()
            os._exit(0)
        finally:
            os._exit(9)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_forked_processes_share_the_place_and_one_that_dies_in_it_leaves_it_free() -> None:
    shelf = Shelf()
    assert forked(lambda: shelf.population("key", lambda: os._exit(5))) == 5
    assert forked(lambda: same(shelf.population("key", made), made())) == 0
    assert forked(lambda: same(shelf.population("key", none), made())) == 0
    same(shelf.population("key", none), made())


@pytest.mark.skipif(sys.platform != "linux", reason="the pages of a process are told by Linux alone")
def test_the_examples_are_pages_of_one_file() -> None:
    shelf = Shelf()
    for _ in range(2):
        found = shelf.population("key", made)
        assert found.divides is not None
        assert "shoal-examples" in mapping_of(found.divides.x)


def mapping_of(array: np.ndarray) -> str:
    """The line of /proc/self/maps that holds the array."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(number, 16) for number in line.split()[0].split("-"))
        if first <= array.ctypes.data < last:
            return line
    return ""
