"""The line on which a pool says how far it is."""

from __future__ import annotations

import pytest

from shoal.tasks.meter import AFTER, WIPE, Meter, Tally, line, span


class Screen:
    def __init__(self, columns: int = 80) -> None:
        self.columns = columns
        self.said: list[str] = []

    def fits(self) -> int:
        return self.columns

    def write(self, text: str) -> None:
        self.said.append(text)


def test_short_work_is_not_told_of_and_long_work_is_until_no_call_is_left() -> None:
    screen = Screen()
    meter = Meter(screen)
    meter.singles = 10
    meter.look(100.0, 10, 2, 2)
    assert not meter.due(100.1)
    meter.look(100.0 + AFTER - 0.1, 8, 2, 2)
    assert screen.said == []
    meter.look(100.0 + AFTER, 5, 2, 2)
    assert screen.said == [f"{WIPE}5 of 10 calls in 2 s, about 2 s left; 2 of 2 actors busy"]
    meter.rest()
    assert screen.said[1:] == [WIPE]
    meter.rest()
    assert len(screen.said) == 2


def test_calls_of_maps_count_and_those_of_before_a_rest_do_not() -> None:
    screen = Screen()
    meter = Meter(screen)
    meter.singles = 4
    meter.tallies.append(Tally(1_000, 498))
    meter.look(0.0, 2, 1, 3)
    meter.look(10.0, 2, 1, 3)
    assert screen.said[-1] == f"{WIPE}500 of 1,004 calls in 10 s, about 10 s left; 1 of 3 actors busy"
    meter.rest()
    meter.singles = 1
    meter.look(20.0, 1, 1, 3)
    meter.look(30.0, 1, 1, 3)
    assert screen.said[-1] == f"{WIPE}0 of 1 calls in 10 s; 1 of 3 actors busy"


def test_a_line_is_never_longer_than_its_terminal() -> None:
    screen = Screen(columns=20)
    meter = Meter(screen)
    meter.singles = 10
    meter.look(0.0, 5, 1, 1)
    meter.look(9.0, 5, 1, 1)
    assert screen.said == [f"{WIPE}5 of 10 calls in 9 "]


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (119, "119 s"), (180, "3 min"), (7_500, "2 h 5 min")])
def test_a_span_is_said_as_a_person_says_it(seconds: float, said: str) -> None:
    assert span(seconds) == said


def test_the_rest_is_not_guessed_before_a_call_is_done() -> None:
    assert "left" not in line(0, 5, 3.0, 1, 1)
    assert "left" not in line(5, 5, 3.0, 1, 1)
