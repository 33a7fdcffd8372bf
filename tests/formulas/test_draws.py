"""Draws are functions of (seed, purpose, numbers), also those that a user's code makes from global generators."""

from __future__ import annotations

import os
import random
import signal
import threading
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch

from shoal.protocol.draws import globally, kept_globals, lent_globals, set_globals


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


def test_blocks_of_two_threads_run_one_after_the_other() -> None:
    with globally(3, "task", 5, 8):
        alone = drawn(), drawn()
    other: list[tuple[float, ...]] = []

    def draw() -> None:
        with globally(4, "task"):
            other.append(drawn())

    with globally(3, "task", 5, 8):
        first = drawn()
        thread = threading.Thread(target=draw)
        thread.start()
        thread.join(0.2)  # without a lock the thread ends in this time, and the draw below is another
        second = drawn()
    thread.join()
    with globally(4, "task"):
        assert other == [drawn()]
    assert (first, second) == alone


def test_a_block_may_stand_in_another_of_the_same_thread_and_in_a_process_forked_while_a_thread_was_in_one() -> None:
    inside, over = threading.Event(), threading.Event()

    def stay() -> None:
        with kept_globals():
            inside.set()
            over.wait()

    thread = threading.Thread(target=stay)
    thread.start()
    inside.wait()
    if (child := os.fork()) == 0:
        signal.alarm(30)  # a child that waits for the lock ends by the signal
        with kept_globals(), globally(0, "task"):
            os._exit(7)
    over.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_generators_that_are_lent_to_two_runs_are_as_before_once_both_have_ended() -> None:
    random.seed(5)
    before = states()
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(lent_globals())
        set_globals(1, "torch")
        second.enter_context(lent_globals())
        set_globals(2, "torch")
        first.close()
        assert states() != before  # the second run goes on with its own
    assert states() == before


def test_generators_that_are_lent_again_come_back_as_they_were_the_last_time() -> None:
    for seed in (5, 6):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = states()
        with lent_globals():
            set_globals(seed, "torch")
            assert states() != before
        assert states() == before


def forked_draws(count: int) -> list[float]:
    """The first draw of each of `count` processes, forked one after the other."""
    found = []
    for _ in range(count):
        here, there = os.pipe()
        if not (pid := os.fork()):
            os.write(there, np.float64(np.random.rand()).tobytes())
            os._exit(0)
        os.close(there)
        found.append(float(np.frombuffer(os.read(here, 8))[0]))
        os.close(here)
        os.waitpid(pid, 0)
    return found


def test_processes_forked_inside_a_block_draw_other_numbers_each_and_the_same_ones_again() -> None:
    runs = []
    for _ in range(2):
        with globally(3, "env made", 5):
            runs.append([*forked_draws(3), float(np.random.rand())])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 4
    with globally(3, "env made", 6):
        assert not set(forked_draws(3)) & set(runs[0])


def test_a_process_forked_outside_of_all_blocks_has_the_generators_of_its_parent() -> None:
    with lent_globals(), globally(3, "task"):
        set_globals(1, "task")
    np.random.seed(8)
    first = forked_draws(2)
    assert first == [float(np.random.rand())] * 2
