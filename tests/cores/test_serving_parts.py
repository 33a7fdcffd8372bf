"""The deciding parts of a server: its queue, split, histogram and book of versions, and its words for wrong inputs."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol.batching import Queue
from shoal.protocol.errors import UserError
from shoal.serving.book import Book
from shoal.serving.histogram import Histogram, Latencies, added, bucket, histogram_of, longest
from shoal.serving.inputs import Inputs, WrongRequestError, from_json
from shoal.serving.splitting import point_of, split_of
from shoal.serving.stats import Stats, merged, prometheus


def queue(max_batch: int = 4, max_wait: float = 2.0, most: int = 10, lanes: tuple[str, ...] = ("a",)) -> Queue[str]:
    return Queue(lanes, max_batch, max_wait, most)


def test_a_request_at_an_idle_model_does_not_wait() -> None:
    held = queue()
    held.offer("a", "one", 1, now=5.0)
    assert held.turn(5.0).batch == ["one"]


def test_a_request_that_came_while_the_model_was_busy_waits_for_company_for_max_wait_at_most() -> None:
    held = queue()
    held.offer("a", "one", 1, now=0.0)
    held.turn(0.0)
    held.offer("a", "two", 1, now=1.0)
    turn = held.turn(1.5)
    assert (turn.batch, turn.again) == ([], 3.0)
    held.offer("a", "three", 1, now=2.0)
    assert held.turn(3.0).batch == ["two", "three"]


def test_a_client_that_asks_alone_never_waits_and_two_wait_for_each_other_alone() -> None:
    held = queue(max_wait=2.0)
    for at in range(3):  # each request comes at once after the answer to the one before
        held.offer("a", f"alone {at}", 1, now=float(at))
        assert held.turn(float(at)).batch == [f"alone {at}"]
        held.turn(at + 0.5)
    held.offer("a", "one", 1, now=3.0)
    assert held.turn(3.0).batch == ["one"]
    held.offer("a", "other", 1, now=3.1)
    assert held.turn(3.5).again == 5.1
    held.offer("a", "one again", 1, now=3.6)
    assert held.turn(3.6).batch == ["other", "one again"]


def test_a_full_batch_does_not_wait() -> None:
    held = queue(max_batch=2)
    held.offer("a", "one", 1, now=0.0)
    held.turn(0.0)
    for name in ("two", "three", "four"):
        held.offer("a", name, 1, now=0.1)
    assert held.turn(0.2).batch == ["two", "three"]


def test_a_server_that_is_told_to_end_waits_for_nobody() -> None:
    held = queue()
    held.offer("a", "one", 1, now=0.0)
    held.turn(0.0)
    held.offer("a", "two", 1, now=0.1)
    assert held.turn(0.2, draining=True).batch == ["two"]


def test_a_batch_is_bounded_in_rows_and_no_request_overtakes_another() -> None:
    held = queue(max_batch=4)
    for name, rows in (("one", 2), ("two", 3), ("three", 1)):
        held.offer("a", name, rows, now=0.0)
    first, second = held.turn(0.0), held.turn(9.0)
    assert (first.batch, first.rows, second.batch, second.rows) == (["one"], 2, ["two", "three"], 4)


def test_a_request_past_its_deadline_is_answered_and_not_computed() -> None:
    held = queue()
    held.offer("a", "late", 3, now=0.0, due=1.0)
    held.offer("a", "fine", 2, now=0.0, due=9.0)
    turn = held.turn(1.0)
    assert (turn.late, turn.batch, turn.rows, len(held)) == (["late"], ["fine"], 2, 0)


def test_waiting_for_company_ends_at_the_deadline() -> None:
    held = queue(max_wait=60.0)
    held.offer("a", "one", 1, now=0.0)
    held.turn(0.0)
    held.offer("a", "two", 1, now=0.0, due=5.0)
    assert held.turn(1.0).again == 5.0


def test_the_queue_is_bounded_in_rows_and_says_so() -> None:
    held = queue(most=3)
    assert held.offer("a", "one", 2, now=0.0)[0] == ""
    assert held.offer("a", "two", 2, now=0.0)[0] == "the queue is full: 2 rows wait, of at most 3; try again"
    assert held.turn(0.0).batch == ["one"]


def test_a_full_queue_lets_go_of_late_requests_first() -> None:
    held = queue(most=3)
    held.offer("a", "late", 2, now=0.0, due=1.0)
    assert held.offer("a", "new", 2, now=2.0) == ("", ["late"])
    assert held.turn(2.0).batch == ["new"]


def test_of_two_models_the_one_whose_oldest_request_waits_longest_is_next() -> None:
    held = queue(lanes=("a", "b"))
    held.offer("b", "first", 1, now=0.0)
    held.offer("a", "second", 1, now=1.0)
    assert [(turn.lane, turn.batch) for turn in (held.turn(1.0), held.turn(1.0))] == [("b", ["first"]), ("a", ["second"])]


@given(st.lists(st.tuples(st.integers(1, 4), st.floats(0, 3), st.booleans()), max_size=60))
def test_every_request_leaves_the_queue_once_in_its_order_and_no_batch_is_too_large(
    came: list[tuple[int, float, bool]],
) -> None:
    held: Queue[int] = Queue(("a",), 4, 2.0, 10**6)
    now, left = 0.0, []
    for number, (rows, pause, ask) in enumerate(came):
        now += pause
        held.offer("a", number, rows, now)
        if ask:
            turn = held.turn(now)
            assert turn.rows <= 4
            left += turn.batch
    while len(held):
        now += 2.0
        turn = held.turn(now)
        assert 0 < turn.rows <= 4
        left += turn.batch
    assert left == list(range(len(came)))
    assert held.rows == {"a": 0}


def test_a_key_has_one_model_and_the_shares_are_met_within_one_percent_over_100000_keys() -> None:
    split = split_of("90,10", ["a", "b"])
    found = Counter(split.of(str(key)) for key in range(100_000))
    assert abs(found["b"] / 100_000 - 0.1) < 0.01
    assert {split.of("7") for _ in range(5)} == {split.of("7")}


def test_a_change_of_the_split_moves_the_users_of_these_points_alone() -> None:
    before, after = split_of("90,10", ["a", "b"], "x"), split_of("80,20", ["a", "b"], "x")
    moved = [key for key in map(str, range(5_000)) if before.of(key) != after.of(key)]
    assert moved
    assert all(8_000 <= point_of("x", key) < 9_000 for key in moved)


def test_another_test_shares_out_its_users_anew() -> None:
    one, other = split_of("50,50", ["a", "b"], "one"), split_of("50,50", ["a", "b"], "other")
    together = Counter((one.of(key), other.of(key)) for key in map(str, range(20_000)))
    assert all(abs(count / 20_000 - 0.25) < 0.02 for count in together.values())


def test_without_a_split_the_shares_are_equal() -> None:
    assert split_of("", ["a", "b", "c"]).shares == (3_334, 3_333, 3_333)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("90", "1 share for 2 models (a, b)"),
        ("90,20", "the shares sum to 110"),
        ("90,ten", "expected a percentage for each model"),
        ("110,-10", "expected a percentage for each model"),
        ("33.333,66.667", "two decimals at most"),
    ],
)
def test_a_split_that_is_none_is_one_line(text: str, fault: str) -> None:
    with pytest.raises(UserError) as raised:
        split_of(text, ["a", "b"])
    assert fault in str(raised.value)
    assert "\n" not in str(raised.value)


@given(st.floats(1e-6, 1e5))
def test_a_time_is_counted_within_a_thirty_second_part(seconds: float) -> None:
    upper = longest(bucket(seconds))
    assert seconds - 1e-6 <= upper <= seconds * (1 + 1 / 32) + 1e-6


def test_quantiles_of_many_times_and_of_none() -> None:
    times = Histogram()
    assert times.quantile(0.5) is None
    for milliseconds in range(1, 1_001):
        times.add(milliseconds / 1e3)
    assert times.quantile(0.5) == pytest.approx(0.5, rel=0.04)
    assert times.quantile(0.99) == pytest.approx(0.99, rel=0.04)


def test_histograms_of_several_processes_add_up() -> None:
    one, other = Histogram(), Histogram()
    one.add(0.1)
    other.add(0.1)
    other.add(0.4)
    both = added([one, histogram_of(other.plain(), other.seconds)])
    assert (both.total, both.counts[bucket(0.1)], round(both.seconds, 6)) == (3, 2, 0.6)


def test_recent_times_are_those_of_the_last_seconds() -> None:
    times = Latencies(now=0.0)
    times.add(1.0, now=0.0)
    times.add(2.0, now=12.0)
    assert [times.recent(now).total for now in (12.0, 22.0, 50.0)] == [2, 1, 0]
    assert times.all.total == 2


@pytest.mark.parametrize("until", [3.0, 9.5, 11.0, 19.9, 25.0, 39.0])
def test_recent_times_tell_how_many_seconds_they_cover(until: float) -> None:
    times = Latencies(now=0.0)
    for tenth in range(int(until * 10)):
        times.add(0.1, now=tenth / 10)
    assert times.recent(until).total / times.covered(until) == pytest.approx(10.0, rel=0.02)
    assert times.recent(until + 100).total / times.covered(until + 100) == 0.0


def book(*versions: int) -> Book[str]:
    made: Book[str] = Book("m")
    for version in versions:
        made.take(version, f"model {version}")
    return made


def serves(held: Book[str]) -> int:
    assert held.serving is not None
    return held.serving.version


def test_a_new_version_answers_and_a_refused_one_does_not() -> None:
    held = book(1, 2)
    held.refuse(3, "holds NaN")
    assert (serves(held), held.swaps, list(held.refused)) == (2, 1, [(3, "holds NaN")])
    assert (held.wants(3), held.wants(2), held.wants(4)) == (False, False, True)


def test_few_versions_are_held_and_the_pinned_one_is_among_them() -> None:
    held = book(1, 2)
    held.pin(1)
    for version in (3, 4, 5, 6):
        held.take(version, "")
    assert (serves(held), sorted(held.held)) == (1, [1, 4, 5, 6])
    held.unpin()
    assert (serves(held), sorted(held.held)) == (6, [4, 5, 6])


def test_a_rollback_leads_to_the_version_before_the_one_that_answers() -> None:
    held = book(1, 2, 3)
    held.pin(held.before())
    assert serves(held) == 2
    held.pin(held.before())
    assert serves(held) == 1
    with pytest.raises(UserError, match="no version of m before the one that answers is held here: held are 1, 2, 3"):
        held.before()


def test_a_version_that_is_not_held_cannot_be_pinned() -> None:
    with pytest.raises(UserError, match="version 9 of m is not held here: held are 1, 2"):
        book(1, 2).pin(9)


def test_a_coordinator_that_lost_versions_is_followed_back() -> None:
    held = book(5, 6)
    assert held.wants(5)
    held.take(5, "anew")
    assert (serves(held), list(held.held)) == (5, [6, 5])


INPUTS = Inputs((2,), "float32", 3)


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b"", "body: not JSON (Expecting value, character 0): send"),
        (b"[1]", "body: a JSON list, not an object: send"),
        (b"\xff", "body: not UTF-8 (byte 0)"),
        (b'{"input": [[1, 2]]}', "'input': no such field; did you mean 'inputs'?"),
        (b"{}", "'inputs' is missing: the body has no field"),
        (b'{"inputs": 3}', "inputs: a JSON number, not a list"),
        (b'{"inputs": [[1, 2], [3]]}', "inputs: the rows have different lengths"),
        (b'{"inputs": [[1, 2, 3]]}', "inputs: shape [1, 3]: expected [rows, 2]"),
        (b'{"inputs": [1, 2]}', "inputs: shape [2]: expected [rows, 2]; put a single row into a list"),
        (b'{"inputs": []}', "inputs: shape [0]: expected [rows, 2]"),
        (b'{"inputs": [[1, "x"]]}', "inputs: [0][1] is a string: expected numbers"),
        (b'{"inputs": [[1, null]]}', "inputs: [0][1] is a null: expected numbers"),
        (b'{"inputs": [[true, false]]}', "inputs: [0][0] is a boolean: expected numbers"),
        (b'{"inputs": [[1, NaN]]}', "body: NaN is no JSON number: every number must be finite"),
        (b'{"inputs": [[1, 1e999]]}', "inputs[0][1]: inf: every number must be finite"),
        (b'{"inputs": [[1, 1e300]]}', "inputs[0][1]: 1e+300 is no float32: the model takes float32"),
        (b'{"inputs": [[1, 2], [1, 2], [1, 2], [1, 2]]}', "inputs: 4 rows: at most 3 go in a request"),
        (b'{"inputs": [[1, 2]], "deadline": -1}', "deadline: -1: expected seconds above 0"),
        (b'{"inputs": ' + b"[" * 9_000 + b"]" * 9_000 + b"}", "too deep"),
        (b'{"inputs": [[1, ' + b"9" * 5_000 + b"]]}", "body: a whole number is too long"),
        (b'{"inputs": [[1, 2]], "deadline": ' + b"9" * 400 + b"}", "deadline: 999"),
        (b'{"inputs": [[1, 2]], "deadline": ' + b"9" * 5_000 + b"}", "body: a whole number is too long"),
    ],
)
def test_a_wrong_request_is_one_line_that_names_field_value_and_fix(body: bytes, fault: str) -> None:
    with pytest.raises(WrongRequestError) as raised:
        from_json(body, INPUTS)
    assert fault in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.status == (413 if "at most 3" in fault else 400)


def test_a_whole_number_beyond_64_bits_is_read_as_a_float_which_a_model_of_whole_numbers_refuses() -> None:
    body = b'{"inputs": [[1, 99999999999999999999999]]}'
    assert from_json(body, INPUTS).rows.tolist() == [[1.0, float(np.float32(1e23))]]
    with pytest.raises(WrongRequestError, match=r"inputs\[0\]\[1\]: 1e\+23 is no int64: the model takes int64"):
        from_json(body, Inputs((2,), "int64", 3))


def test_what_only_the_standard_library_reads_is_read() -> None:
    body = b'{"inputs": [[1, 2]], "deadline": 1, "\\ud800": 1}'  # half of a surrogate pair
    with pytest.raises(WrongRequestError, match="no such field"):
        from_json(body, INPUTS)


def test_a_text_among_numbers_takes_no_memory_in_the_place_of_each_number() -> None:
    body = b'{"inputs": [[' + b"1, " * 20_000 + b'"' + b"a" * 200_000 + b'"]]}'  # as an array of texts: 16 GB
    tracemalloc.start()
    try:
        with pytest.raises(WrongRequestError, match=r"inputs: \[0\]\[20000\] is a string"):
            from_json(body, INPUTS)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_sound_request_becomes_rows_in_the_model_s_dtype() -> None:
    asked = from_json(b'{"inputs": [[1, 2.5]], "deadline": 0.05}', INPUTS)
    assert (asked.rows.tolist(), asked.rows.dtype, asked.deadline) == ([[1.0, 2.5]], np.float32, 0.05)
    assert from_json(b'{"inputs": [[1, 2]]}', INPUTS).deadline == math.inf


def test_a_model_of_whole_numbers_takes_whole_numbers_alone() -> None:
    inputs = Inputs((2,), "int64", 3)
    assert from_json(b'{"inputs": [[1, 2.0]]}', inputs).rows.tolist() == [[1, 2]]
    with pytest.raises(WrongRequestError, match=r"inputs\[0\]\[1\]: 2.5 is no int64"):
        from_json(b'{"inputs": [[1, 2.5]]}', inputs)


def told(requests: int, seconds: float, pid: int) -> dict[str, Any]:
    stats = Stats({"pids": [pid], "http": "h"}, {"a": "runs/a"}, {"a": 100.0}, now=0.0)
    for _ in range(requests):
        stats.answered("a", 2, seconds, now=1.0)
    stats.computed(2 * requests)
    return stats.plain({"a": book(3)}, queue=1, now=1.0, at=9.0, state="serving")


def test_the_figures_of_replicas_add_up_to_those_of_one_server() -> None:
    found = merged([told(3, 0.1, 10), told(1, 0.9, 11)])
    assert (found["requests"], found["rows"], found["pids"], found["queue"], found["batch"]) == (4, 8, [10, 11], 2, 4.0)
    assert found["p50"] == pytest.approx(0.1, rel=0.04)
    assert found["p99"] == pytest.approx(0.9, rel=0.04)
    [model] = found["models"]
    assert (model["version"], model["requests"], "_times" in model) == (3, 4, False)
    assert json.loads(json.dumps(found)) == found


def test_the_figures_are_told_to_prometheus_with_names_that_may_hold_anything() -> None:
    found = merged([told(1, 0.1, 10)])
    found["models"][0]["model"] = 'a"b\n'
    lines = prometheus(found).splitlines()
    assert 'shoal_serve_requests_total{model="a\\"b\\n"} 1' in lines
    assert 'shoal_serve_unanswered_total{reason="late"} 0' in lines
    assert all(line.startswith(("#", "shoal_serve_")) for line in lines)
