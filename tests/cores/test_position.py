"""How far a follower has told a history: what is new in a file that grows, is cut, and is written anew."""

from __future__ import annotations

import json
import random

from shoal.tracking.position import KEPT, News, Position, news


def line(version: int, **metrics: float) -> bytes:
    return json.dumps({"version": version, "seconds": version / 2, "metrics": metrics}).encode() + b"\n"


def look(data: bytes, position: Position, chunk: int = 1 << 16) -> News:
    return news(lambda at, most: data[at : at + most], position, chunk)


def versions(found: News) -> list[int]:
    return [each.row["version"] for each in found.lines]


def told(data: bytes, position: Position = Position()) -> Position:  # noqa: B008  frozen
    found = look(data, position)
    return found.position.after(found.lines)


def test_each_row_is_new_once_while_the_history_grows() -> None:
    first, both = line(1, loss=1.0), line(1, loss=1.0) + line(2, loss=0.5)
    assert versions(look(first, Position())) == [1]
    assert versions(look(both, told(first))) == [2]
    assert versions(look(both, told(both))) == []


def test_a_last_line_without_its_end_is_left_for_later() -> None:
    whole = line(1) + line(2)
    for cut in range(len(line(1)), len(whole)):
        assert versions(look(whole[:cut], told(line(1)))) == []
    assert versions(look(whole, told(line(1)))) == [2]


def test_half_a_line_of_a_killed_run_is_left_out_and_the_rows_after_it_are_not() -> None:
    data = line(1) + line(2)[:9] + b"\n" + b"[1, 2]\n" + line(2) + line(3)
    assert versions(look(data, Position())) == [1, 2, 3]
    assert versions(look(data, told(line(1)))) == [2, 3]
    assert versions(look(data + line(4), told(data))) == [4]


def test_rows_that_a_resumed_run_makes_again_are_told_again_and_no_others() -> None:
    before = told(b"".join(line(each, loss=1 / each) for each in (1, 2, 3, 4)))
    found = look(line(1, loss=1.0) + line(2, loss=0.5) + line(3, loss=9.0), before)
    assert versions(found) == [3]
    assert found.note == "rows after version 2 were written anew, and are told again"
    assert versions(look(line(1, loss=1.0) + line(2, loss=0.5), before)) == []  # and those to come are, too
    assert look(line(1, loss=1.0), before).position == told(line(1, loss=1.0))


def test_a_last_row_that_is_written_again_with_its_evaluation_is_told_again() -> None:
    before = told(line(1, loss=1.0) + line(2, loss=0.5))
    found = look(line(1, loss=1.0) + line(2, loss=0.5, accuracy=0.9) + line(3), before)
    assert [each.row["metrics"] for each in found.lines] == [{"loss": 0.5, "accuracy": 0.9}, {}]


def test_rows_that_only_moved_in_the_file_are_not_told_again() -> None:
    halves = line(1) + b'{"ver\n' + line(2) + line(3)
    found = look(line(1) + line(2) + line(3), told(halves))
    assert (versions(found), found.note) == ([], "")
    assert found.position == told(line(1) + line(2) + line(3))


def test_a_history_that_was_replaced_is_told_from_its_beginning() -> None:
    found = look(line(1, loss=7.0) + line(2, loss=8.0), told(line(1, loss=1.0)))
    assert versions(found) == [1, 2]
    assert found.note == "metrics.jsonl was replaced, and is told from its beginning"
    assert look(b"", told(line(1))).position == Position()  # taken back to version 0


def test_a_row_longer_than_what_is_read_at_a_time_is_read_whole() -> None:
    data = line(1) + line(2, **{f"metric{each}": 1.0 for each in range(100)}) + line(3)
    found = look(data, told(line(1)), chunk=16)
    assert versions(found)[:1] == [2]


def test_a_position_keeps_its_newest_digests_and_comes_back_from_plain_data() -> None:
    position = told(b"".join(map(line, range(KEPT + 10))))
    assert len(position.told) == KEPT
    assert position.told[-1][0] == KEPT + 9
    assert Position.of(json.loads(json.dumps(position.plain()))) == position


def test_whatever_a_run_takes_back_a_tracker_that_keeps_rows_by_step_ends_with_its_history() -> None:
    for seed in range(200):
        draw = random.Random(seed)
        rows: list[bytes] = []
        position, kept = Position(), dict[int, bytes]()
        for _ in range(draw.randrange(2, 12)):
            del rows[draw.randrange(len(rows) + 1) if draw.random() < 0.4 else len(rows) :]
            rows += [line(len(rows) + each, loss=draw.random()) for each in range(1, draw.randrange(1, 5))]
            whole = b"".join(rows)
            seen = whole[: draw.randrange(len(whole) + 1)] if draw.random() < 0.3 else whole  # torn
            found = look(seen, position)
            position = found.position.after(found.lines)
            kept |= {each.row["version"]: seen[each.begin : each.end] for each in found.lines}
        found = look(b"".join(rows), position)
        kept |= {each.row["version"]: b"".join(rows)[each.begin : each.end] for each in found.lines}
        assert [kept[at + 1] for at in range(len(rows))] == rows
