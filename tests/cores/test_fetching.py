"""Facts about fetching in pieces, with a clock wound by hand and a way made of numbers."""

from __future__ import annotations

import itertools
from random import Random

import pytest

from shoal.protocol.fetching import DEEPEST, LEAST, MOST, PROBE, UNKNOWN, Fetch, Range, Way

MB = 1_000_000


class Road:
    """A way with a delay and a rate: a piece takes its turn, then arrives."""

    def __init__(self, nbytes: int, rtt: float, rate: float, way: Way | None = None) -> None:
        self.rtt, self.rate = rtt, rate
        self.fetch = Fetch(nbytes, way or Way())
        self.now = self.free_at = 10.0
        self.coming: list[tuple[float, Range]] = []
        self.sent: list[Range] = []
        self.deepest = 0

    def ask(self) -> None:
        for first, last in self.fetch.ask(self.now):
            self.free_at = max(self.free_at, self.now + self.rtt) + (last - first) / self.rate
            self.coming.append((self.free_at, (first, last)))
            self.sent.append((first, last))
        self.deepest = max(self.deepest, sum(last - first for _, (first, last) in self.coming))

    def come(self) -> bool:
        """The next piece arrives. False where none is under way."""
        self.ask()
        if not self.coming:
            return False
        self.now, (first, last) = self.coming.pop(0)
        assert self.fetch.arrived(first, last, self.now)
        return True

    def cut(self) -> int:
        """Everything under way is lost. How much that was."""
        lost = sum(last - first for _, (first, last) in self.coming)
        self.coming.clear()
        self.free_at = self.now
        self.fetch.cut()
        return lost

    def run(self) -> float:
        began = self.now
        while self.fetch.left:
            assert self.come()
        return self.now - began


@pytest.mark.parametrize("nbytes", [1, LEAST, LEAST + 1, 10 * MB, 100 * MB])
def test_every_byte_is_asked_for_once(nbytes: int) -> None:
    road = Road(nbytes, rtt=0.0003, rate=1e9)
    road.run()
    pieces = sorted(one for one in road.sent if one != PROBE)
    assert [first for first, _ in pieces] == [0, *(last for _, last in pieces[:-1])]
    assert pieces[-1][1] == nbytes
    assert (road.fetch.left, road.fetch.again) == (0, 0)


def test_the_way_is_tried_before_anything_is_asked_for_and_only_once() -> None:
    way = Way()
    road = Road(MB, rtt=0.05, rate=1e8, way=way)
    road.ask()
    assert road.sent == [PROBE]
    road.run()
    assert way.rtt == pytest.approx(0.05)
    again = Road(MB, rtt=0.05, rate=1e8, way=way)
    again.ask()
    assert PROBE not in again.sent


def test_a_slow_way_has_one_small_piece_under_way() -> None:
    road = Road(20 * MB, rtt=0.3, rate=125_000)
    road.run()
    assert road.deepest <= LEAST


@pytest.mark.parametrize("rate", [9_000.0, 20_000.0, 125_000.0])
def test_on_a_slow_way_pieces_come_every_other_second(rate: float) -> None:
    road = Road(MB, rtt=0.3, rate=rate)
    came = [road.now]
    while road.fetch.left:
        road.come()
        came.append(road.now)
    waits = [later - earlier for earlier, later in itertools.pairwise(came[2:])]
    assert max(waits) < 2.5  # after the first piece, which is small where it is far
    assert came[2] - came[1] < 65_536 / rate + 0.31
    assert road.fetch.again == 0


def test_a_fast_short_way_has_one_large_piece_under_way() -> None:
    road = Road(100 * MB, rtt=0.0003, rate=1e9)
    road.run()
    assert road.deepest <= MOST
    assert (road.sent[-2][1] - road.sent[-2][0]) == MOST


def test_an_end_that_was_busy_when_the_way_was_tried_does_not_make_it_long() -> None:
    way = Way()
    tried = Fetch(MB, way)
    assert tried.ask(0.0) == [PROBE]
    assert tried.arrived(*PROBE, 0.2)  # it was busy with something else
    road = Road(100 * MB, rtt=0.0003, rate=1e9, way=way)
    road.run()
    assert way.rtt < 0.001
    assert way.window == MOST
    assert road.deepest <= 4 * MOST  # until that was known


def test_pieces_that_are_taken_in_together_do_not_make_a_way_fast() -> None:
    way = Way(rtt=0.001)
    for _ in range(20):
        way.took(LEAST, LEAST / 1e8)
    for _ in range(3):
        way.took(LEAST, 0.0)
    assert way.rate < 2e8


def test_no_more_is_under_way_than_the_receiver_has_room_for() -> None:
    way = Way(rtt=1.0, rate=1e9)
    assert way.window == DEEPEST
    pieces = Fetch(100 * MB, way).ask(0.0, 5 * MB)
    assert sum(last - first for first, last in pieces) <= 5 * MB
    assert len(Fetch(100 * MB, way).ask(0.0, LEAST // 2)) == 1


def test_a_long_fat_way_is_kept_busy() -> None:
    road = Road(1_000 * MB, rtt=0.1, rate=1.25e8)
    seconds = road.run()
    assert seconds < 1.15 * 1_000 * MB / 1.25e8
    assert road.deepest <= DEEPEST


def test_a_cut_costs_what_was_under_way_and_nothing_else() -> None:
    road = Road(20 * MB, rtt=0.3, rate=125_000)
    for _ in range(10):
        road.come()
    road.ask()
    lost = road.cut()
    road.run()
    assert 0 < road.fetch.again == lost <= LEAST
    assert sum(last - first for first, last in road.sent) == 20 * MB + lost


def test_what_does_not_come_is_asked_for_again_later_and_later() -> None:
    fetch = Fetch(100, Way(rtt=0.1))
    assert fetch.ask(0.0) == [(0, 100)]
    assert fetch.ask(UNKNOWN - 1) == []
    assert fetch.ask(UNKNOWN + 1) == [(0, 100)]
    assert fetch.ask(2 * UNKNOWN + 2) == []
    assert fetch.ask(3 * UNKNOWN + 3) == [(0, 100)]
    assert fetch.again == 200


def test_after_a_cut_no_more_is_asked_for_than_there_is_room_for_now() -> None:
    fetch = Fetch(40 * MB, Way(rtt=0.01, rate=1e9))
    assert next(last - first for first, last in fetch.ask(0.0)) == MOST
    fetch.cut()
    pieces = []
    for turn in range(10 * MOST // LEAST):
        (piece,) = fetch.ask(turn / 10, most=LEAST)
        pieces.append(piece)
        assert fetch.arrived(*piece, turn / 10)
    assert pieces == [(first, first + LEAST) for first in range(0, 10 * MOST, LEAST)]


def test_late_pieces_are_cut_to_what_a_way_carries_that_became_slow() -> None:
    fetch = Fetch(7 * MB, way := Way(rtt=0.25, rate=2e7))
    first, (begin, end), *_ = fetch.ask(0.0)
    assert fetch.arrived(*first, 30.0)
    for _ in range(50):
        way.took(LEAST, 10.0)
    assert fetch.ask(30.0 + 3_600) == [(begin, begin + way.chunk)]
    assert way.chunk < end - begin


def test_what_was_not_asked_for_is_not_wanted() -> None:
    fetch = Fetch(100, Way(rtt=0.1))
    assert not fetch.arrived(0, 100, 0.0)
    fetch.ask(0.0)
    assert not fetch.arrived(0, 99, 1.0)
    assert fetch.arrived(0, 100, 1.0)
    assert not fetch.arrived(0, 100, 1.0)
    assert fetch.left == 0


@pytest.mark.parametrize("seed", range(50))
def test_whatever_is_lost_everything_comes_in_the_end(seed: int) -> None:
    rng, road = Random(seed), Road(5 * MB, rtt=0.01, rate=1e7)
    here: set[Range] = set()
    while road.fetch.left:
        road.ask()
        if not road.coming or rng.random() < 0.1:
            road.cut()
            continue
        road.now, piece = road.coming.pop(0)
        if rng.random() < 0.1:
            road.now += 2 * UNKNOWN  # it is lost by itself, and nobody says so
            road.coming.clear()
            continue
        assert road.fetch.arrived(*piece, road.now)
        if piece != PROBE:
            assert piece not in here
            here.add(piece)
    assert sorted(first for first, _ in here) == [0, *sorted(last for _, last in here)[:-1]]
