"""Facts about the thread that works: it adds changes, in their order and before the task that needs them."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from shoal.actors.effects import Run
from shoal.actors.hand import Clock, Hand, Held, Order
from shoal.actors.labour import Product
from shoal.actors.sharing import Shared
from shoal.protocol.changes import Changes
from shoal.protocol.compress import Coding
from shoal.protocol.errors import ProtocolError
from shoal.protocol.layout import Bundle, Bytes
from shoal.protocol.messages import Contribute
from shoal.protocol.pool import Buffers
from shoal.protocol.work import Task, Work

LAYOUT = Bundle.pack({"w": np.zeros(1_000, np.float32), "n": np.zeros(3, np.int64)}).layout


def bundle(seed: int) -> Bundle:
    rng = np.random.default_rng(seed)
    return Bundle.pack({"w": rng.normal(size=1_000), "n": rng.integers(0, 9, 3)}, LAYOUT)


class Story:
    """Versions of weights, as a coordinator tells them: each with what changed since the last."""

    def __init__(self, versions: int) -> None:
        self.changes, rng = Changes(Coding("int8"), LAYOUT), np.random.default_rng(0)
        self.versions, self.told = [bundle(0)], list[Bytes]()
        for number in range(1, versions):
            change = self.changes.tell(bundle(number), self.versions[-1], rng)
            self.told.append(change.data.copy())
            self.versions.append(Bundle.zeros(LAYOUT))
            self.changes.follow(self.versions[-2], [change.data], self.versions[-1])

    def held(self) -> list[Held]:
        """All of them, made of the first."""
        changes, linked = Changes(Coding("int8"), LAYOUT), [Held(self.versions[0])]
        for told in self.told:
            linked.append(Held(before=linked[-1], told=told, changes=changes))
        return linked


@pytest.mark.parametrize("asked", [*itertools.permutations([1, 2, 4], 2), (4,), (0, 3), (4, 4)])
def test_changes_make_the_same_bits_in_whichever_order_they_are_asked_for(asked: tuple[int, ...]) -> None:
    story, buffers = Story(5), Buffers()
    held = story.held()
    for version in asked:
        assert held[version].bundle(buffers).sha256() == story.versions[version].sha256()
    assert held[0].bundle(buffers) is story.versions[0]
    assert story.versions[0].sha256() == bundle(0).sha256()  # which a task may still read


def test_a_version_is_made_once_and_what_it_was_made_of_is_let_go() -> None:
    story, buffers = Story(3), Buffers()
    held = story.held()
    assert held[2].bundle(buffers) is held[2].bundle(buffers)
    assert (held[2].before, held[2].told) == (None, None)


class Weigher:
    """Notes the weights that it works from. closed: times that it was closed."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.closed = 0

    def close(self) -> None:
        self.closed += 1

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        self.seen.append(weights.sha256())
        return Work(weights, steps=task.version)


class Bench:
    """A hand that works in a thread of its own, and a worker."""

    def __init__(self, waits: float = 120.0, clock: Clock = time.monotonic) -> None:
        self.worker, self.until = Weigher(), time.monotonic() + waits
        self.made: list[tuple[Mapping[str, Any], int]] = []  # workloads of which a worker was made, and how often it was closed
        self.wakes: list[int] = []  # number of results at each wake
        self.workload: Mapping[str, Any] = {}
        self.hand = Hand(self._workshop, clock, self._wake, Shared(), Buffers())

    def _wake(self) -> None:
        self.wakes.append(len(self.hand.results))

    def _workshop(self, workload: Mapping[str, Any]) -> Weigher:
        self.made.append((workload, self.worker.closed))
        return self.worker

    def order(self, version: int, weights: Held) -> Order:
        return Order(Run(Task(version, 0, (0,)), 1, False, version), weights, None, self.workload)

    def results(self) -> list[Product | Held | BaseException]:
        """All of them, when there is no more to do."""
        self.hand.orders.put(None)
        self.hand.join(max(0.0, self.until - time.monotonic()))
        assert not self.hand.is_alive()
        return [*self.hand.results]


def test_every_task_works_from_its_own_version_though_newer_changes_came_before_it_began() -> None:
    story, bench = Story(5), Bench()
    held = story.held()
    for version in (0, 2, 2, 3):
        bench.hand.newest = held[version]
        bench.hand.orders.put(deque([held[version], bench.order(version, held[version])]))
    bench.hand.newest = held[4]
    bench.hand.orders.put(deque([held[4]]))
    bench.hand.start()
    results = bench.results()
    assert bench.worker.seen == [story.versions[version].sha256() for version in (0, 2, 2, 3)]
    made = [one.message.made_from for one in results if isinstance(one, Product) and isinstance(one.message, Contribute)]
    assert made == [0, 2, 2, 3]
    assert results[-1] is held[4]  # of the others only these that nobody has overtaken are told of
    assert [one for one in results if isinstance(one, Held)] == [held[4]]
    assert held[4].bundle(Buffers()).sha256() == story.versions[4].sha256()


def test_what_is_no_change_of_these_weights_ends_the_life_and_not_the_thread_in_silence() -> None:
    story, bench = Story(2), Bench()
    wrong = Held(before=Held(story.versions[0]), told=story.told[0][:-1], changes=Changes(Coding("int8"), LAYOUT))
    bench.hand.newest = wrong
    bench.hand.orders.put(deque([wrong]))
    bench.hand.start()
    [error] = bench.results()
    assert isinstance(error, ProtocolError)


def test_one_worker_does_all_tasks_of_a_workload_and_is_closed_when_another_comes_and_at_the_end() -> None:
    bench, held = Bench(), Held(bundle(0))
    first, second = {"job": "a"}, {"job": "a"}  # alike, and yet of two welcomes
    for workload in (first, second):
        bench.workload = workload
        bench.hand.orders.put(deque([workload]))
        for version in (1, 2):
            bench.hand.orders.put(deque([bench.order(version, held)]))
    bench.hand.start()
    assert len(bench.results()) == 4
    assert [(made is first, made is second, closed) for made, closed in bench.made] == [(True, False, 0), (False, True, 1)]
    assert bench.worker.closed == 2


@pytest.mark.parametrize("retains", [True, False])
def test_only_work_that_may_be_asked_for_again_gets_a_digest(retains: bool) -> None:
    bench, weights = Bench(), bundle(0)
    bench.hand.retains = retains
    bench.hand.orders.put(deque([bench.order(1, Held(weights))]))
    bench.hand.start()
    [product] = bench.results()
    assert isinstance(product, Product)
    assert isinstance(product.message, Contribute)
    assert product.message.digest == (weights.sha256() if retains else "")


def test_the_time_that_a_worker_waited_is_from_the_end_of_the_last_task_to_the_next() -> None:
    ticks = itertools.count()
    bench = Bench(clock=lambda: float(next(ticks)) ** 2)  # 0, 1, 4, 9, ...: every interval has a length of its own
    for version in (1, 2):
        bench.hand.orders.put(deque([bench.order(version, Held(bundle(0)))]))
    bench.hand.start()
    took = [
        (one.message.waited, one.message.trained)
        for one in bench.results()
        if isinstance(one, Product) and isinstance(one.message, Contribute)
    ]
    assert took == [(1.0, 5.0), (9.0, 13.0)]


def test_a_result_that_comes_behind_others_wakes_nobody_and_the_first_one_does() -> None:
    bench, held = Bench(), Story(1).held()
    bench.hand.orders.put(deque(bench.order(0, held[0]) for _ in range(3)))
    bench.hand.start()
    assert len(bench.results()) == 3
    assert bench.wakes == [1]


def test_a_hand_that_is_ended_does_the_task_under_way_and_none_that_waits() -> None:
    bench, held = Bench(), Story(1).held()

    class Ender:  # without a close, or `end` would wait for this very thread
        def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
            bench.hand.end()
            return Work(weights)

    worker: Any = Ender()
    bench.worker = worker
    worker.closed = 0
    bench.hand.orders.put(deque(bench.order(0, held[0]) for _ in range(3)))
    bench.hand.orders.put(deque([bench.order(0, held[0])]))
    bench.hand.start()
    [product] = bench.results()
    assert isinstance(product, Product)
    assert isinstance(product.message, Contribute)
