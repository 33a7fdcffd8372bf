"""What the page reads: lines after an offset, rows, sweeps, and who may read it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.protocol.errors import UserError
from shoal.runs.rundir import Config, RunDir, replaced
from shoal.watching import sources
from shoal.watching.app import FILES, application, static, stream
from shoal.watching.door import COOKIE, Door, known
from shoal.watching.page import token_of
from shoal.watching.sources import Elsewhere, RunSource, newest, row_of, sources_of
from shoal.watching.tail import SAMPLES, Mark, Tail, last_lines


def row(version: int, **metrics: Any) -> str:
    whole = {"version": version, "seconds": version / 2, "steps": 0, "contributions": 10 * version, "metrics": metrics}
    return json.dumps(whole) + "\n"


def run_in(folder: Path, versions: int = 0) -> RunDir:
    folder.mkdir(parents=True)
    run = RunDir(folder)
    run.write_config(Config("digits", settings={"lr": 0.1}))
    run.metrics_file.write_text("".join(row(version, loss=1 / version) for version in range(1, versions + 1)))
    return run


# Lines


def test_a_tail_gives_whole_lines_once_and_waits_for_the_end_of_a_torn_one(tmp_path: Path) -> None:
    path, long = tmp_path / "lines", "x" * 80
    tail = Tail(path)
    assert tail.new() is None
    path.write_text(f"{long}\ntwo\ntor")
    first = tail.new()
    assert first is not None
    assert (first.lines, first.fresh) == ([long.encode(), b"two"], True)
    assert tail.new() is None
    with path.open("a") as file:
        file.write("n\n")
    second = tail.new()
    assert second is not None
    assert (second.lines, second.fresh) == ([b"torn"], False)


def test_a_tail_goes_on_from_the_mark_of_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("a" * 70 + "\nb\n")
    before = Tail(path)
    before.new()
    with path.open("a") as file:
        file.write("c\n")
    after = Tail(path, Mark.read(str(before.mark)))
    found = after.new()
    assert found is not None
    assert (found.lines, found.fresh) == ([b"c"], False)
    assert after.mark is not None
    assert after.mark.offset == path.stat().st_size


@pytest.mark.parametrize("mark", ["", "x", "12", "zz.3", "1.-3", "1.2.3", "1." + "9" * 80, "٣.٣"])
def test_a_mark_of_another_form_is_none(mark: str) -> None:
    assert Mark.read(mark) is None


def replace(path: Path) -> None:
    replaced(path, "A" * 70 + "\nB\nC\nD\n")


def shorten(path: Path) -> None:
    os.truncate(path, 71)


def lengthen_the_last(path: Path) -> None:  # as an evaluation after the last step does
    os.truncate(path, 71)
    with path.open("a") as file:
        file.write("bbbbbbbb\n")


def make_anew(path: Path) -> None:
    path.unlink()
    path.write_text("Z" * 70 + "\nb\nmore\n")


@pytest.mark.parametrize("change", [replace, shorten, lengthen_the_last, make_anew])
def test_a_tail_begins_again_with_a_file_that_is_another(tmp_path: Path, change: Any) -> None:
    path = tmp_path / "lines"
    path.write_text("a" * 70 + "\nb\n")
    tail = Tail(path)
    tail.new()
    change(path)
    found = tail.new()
    assert found is not None
    assert found.fresh
    assert found.lines == path.read_bytes().splitlines()


def test_a_file_that_is_gone_leaves_nothing_of_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("a\n")
    tail = Tail(path)
    tail.new()
    path.unlink()
    found = tail.new()
    assert found is not None
    assert (found.lines, found.fresh) == ([], True)
    assert tail.new() is None


def test_a_large_file_is_thinned_but_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("".join(row(version, loss=0.5) for version in range(1, 40_001)))
    tail = Tail(path, at_once=1 << 20)
    found = tail.new()
    assert found is not None
    assert found.thinned
    versions = [json.loads(line)["version"] for line in found.lines]
    assert versions[0] == 1
    assert versions == sorted(set(versions))
    assert versions[-1500:] == list(range(38_501, 40_001))
    assert 0.9 * SAMPLES < len(versions) < SAMPLES + 5_000
    with path.open("a") as file:
        file.write(row(40_001))
    again = tail.new()
    assert again is not None
    assert [json.loads(line)["version"] for line in again.lines] == [40_001]


def test_the_last_lines_of_a_log_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("".join(f"line {at}\n" for at in range(100)) + "torn")
    assert last_lines(path, 2) == [b"line 98", b"line 99"]
    assert last_lines(path, 99, wide=25) == [b"line 98", b"line 99"]
    assert last_lines(tmp_path / "none", 3) == []


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"[]", b"7", b"{}", b'{"version": "a"}', b'{"version": 1, "seconds": 1, "steps": 0, "contributions": 1}'],
)
def test_a_line_that_is_no_row_is_left_out(line: bytes) -> None:
    assert row_of(line) is None


def test_what_is_no_finite_number_in_a_row_is_nothing() -> None:
    found = row_of(row(3, loss=0.5, inf=1e999, text="x", flag=True, none=None).replace("Infinity", "1e999").encode())
    assert found == [3, 1.5, 0, 30, {"loss": 0.5, "inf": None, "text": None, "flag": None, "none": None}]


# Runs


def events(source: Any, mark: str = "") -> tuple[list[tuple[str, dict[str, Any]]], str]:
    cursor = source.cursor(mark)
    return list(cursor.news()), cursor.mark


def versions(found: list[tuple[str, dict[str, Any]]]) -> tuple[list[int], bool]:
    [told] = [data for name, data in found if name == "rows"]
    return [row[0] for row in told["rows"]], told["fresh"]


def test_a_page_that_comes_back_gets_the_rows_after_its_own(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", 5)
    source = RunSource(run.path)
    found, mark = events(source)
    assert versions(found) == ([1, 2, 3, 4, 5], True)
    with run.metrics_file.open("a") as file:
        file.write(row(6))
    assert versions(events(source, mark)[0]) == ([6], False)


def test_a_resumed_run_is_one_curve(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", 9)
    source = RunSource(run.path)
    cursor = source.cursor("")
    list(cursor.news())
    run.rewind(6)
    with run.metrics_file.open("a") as file:
        file.write(row(7) + row(8) + row(9) + row(10))
    assert versions(list(cursor.news())) == ([*range(1, 11)], True)


def test_a_folder_that_is_deleted_is_told_and_one_that_comes_again_is_told_anew(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", 2)
    cursor = RunSource(run.path).cursor("")
    list(cursor.news())
    run.path.rename(tmp_path / "moved")
    gone = list(cursor.news())
    assert ("folder", {"there": False}) in gone
    assert versions(gone) == ([], True)
    assert list(cursor.news()) == []
    run_in(run.path, 3)
    back = list(cursor.news())
    assert ("folder", {"there": True}) in back
    assert versions(back) == ([1, 2, 3], True)


def test_a_status_is_told_when_it_changes_and_one_that_is_broken_is_none(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    cursor = RunSource(run.path).cursor("")
    list(cursor.news())
    replaced(run.status_file, '{"version": 3, "seconds": NaN}')
    assert list(cursor.news()) == [("status", {"status": {"version": 3, "seconds": None}})]
    assert list(cursor.news()) == []
    for broken in ("[1]", "{", ""):
        replaced(run.status_file, broken + " " * len(broken))
        assert list(cursor.news()) == [("status", {"status": None})]


def test_the_newest_run_or_sweep_is_shown_if_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shoal simulate digits"):
        newest(tmp_path)
    for at, name in enumerate(["runs/b", "runs/a", "sweeps/c"]):
        file = tmp_path / name / ("sweep.toml" if name.startswith("sweeps") else "config.toml")
        file.parent.mkdir(parents=True)
        file.write_text("job = 'digits'\n")
        os.utime(file, (at, at))
        assert newest(tmp_path) == tmp_path / name
    (tmp_path / "runs" / "latest").symlink_to("b")
    assert newest(tmp_path) == tmp_path / "sweeps/c"


def test_a_run_of_a_broken_config_is_shown_with_the_reason(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    run.config_file.write_text("job = [")
    [source] = sources_of([str(run.path)])
    assert "is not TOML" in source.about()["why"]
    with pytest.raises(UserError, match="is no run"):
        sources_of([str(tmp_path / "nowhere")])


def test_a_coordinator_elsewhere_is_told_by_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: Iterator[Any] = iter(
        [{"version": 3, "steps": 0, "run": "r"}, {"state": "no answer", "why": "nobody"}, UserError("key")]
    )

    def ask() -> tuple[bool, dict[str, Any]]:
        found = next(answers)
        if isinstance(found, UserError):
            raise found
        return True, found

    source = Elsewhere("tcp://127.0.0.1:9", ask, iter([0.0, 2.0]).__next__)
    cursor = source.cursor("")
    assert list(cursor.news()) == []
    source.look()
    assert versions(list(cursor.news())) == ([3], True)
    assert source.about()["name"] == "r"
    source.look()
    assert list(cursor.news())[-1] == ("status", {"status": {"state": "no answer", "why": "nobody"}})
    source.look()
    assert list(cursor.news())[-1][1]["status"]["why"] == "key"
    assert versions(events(source)[0]) == ([3], True)
    assert sources.POINTS > 1000


# Sweeps


def test_a_sweep_is_told_by_its_arms_best_first_with_the_curves_of_its_trials(tmp_path: Path) -> None:
    folder = tmp_path / "sweeps" / "x"
    folder.mkdir(parents=True)
    (folder / "sweep.toml").write_text('job = "digits"\ngoal = "max:accuracy"\n[space]\nlr = [0.1, 0.2]\nseed = [0]\n')
    for trial, accuracy in enumerate([0.5, 0.9]):
        run_in(folder / "trials" / f"{trial:04d}")
        (folder / "trials" / f"{trial:04d}" / "metrics.jsonl").write_text(row(1, accuracy=0.1) + row(2, accuracy=accuracy))
    lines = [
        {"trial": at, "arm": at, "seed": 0, "state": "complete", "value": value, "step": 2, "params": {"lr": lr}, "run": "x"}
        for at, (lr, value) in enumerate([(0.1, 0.5), (0.2, 0.9)])
    ]
    pruned = {"trial": 2, "arm": 2, "seed": 0, "state": "pruned", "step": 1, "params": {"lr": 0.3}, "values": [[1, 0.2]]}
    (folder / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, pruned]))
    [source] = sources_of([str(folder)])
    [(name, data)] = events(source)[0]
    found = json.loads(json.dumps(data["sweep"], allow_nan=False))
    assert (name, found["metric"], found["counts"]) == ("sweep", "accuracy", {"complete": 2, "pruned": 1})
    assert [(arm["arm"], arm["state"], arm["mean"], arm["params"]) for arm in found["arms"]] == [
        (1, "complete", 0.9, [0.2]),
        (0, "complete", 0.5, [0.1]),
        (2, "pruned", None, [0.3]),
    ]
    assert found["arms"][0]["curve"] == [[1, 0.1], [2, 0.9]]
    assert events(source)[0] == [(name, data)]


# The door


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8265", "127.0.0.1:1", "[::1]:80", "[::1]", "192.0.2.7", "LOCALHOST", "box:1"]
)
def test_a_host_that_is_this_server_is_let_in(host: str) -> None:
    assert known(host, ["Box"])


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example:80",
        "[::1]x",
        "box.evil:1",
        "127.0.0.1@evil",
        "0x7f.1",
    ],
)
def test_a_host_that_a_stranger_can_point_here_is_not(host: str) -> None:
    assert not known(host, ["Box"])


def answered(
    app: Any, path: str = "/", method: str = "GET", query: str = "", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """The answer of an ASGI application to one request. headers: host is localhost if not given."""
    given = {"host": "localhost", **{name.replace("_", "-"): value for name, value in headers.items()}}
    raw = [(name.encode(), value.encode()) for name, value in given.items()]
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode(),
             "headers": raw, "server": ("127.0.0.1", 8265), "client": ("127.0.0.1", 1), "scheme": "http", "root_path": "",
             "http_version": "1.1", "asgi": {"version": "3.0"}}  # fmt: skip
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()  # this client stays

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:])


def page(tmp_path: Path, token: str = "", over: bool = True) -> Any:
    return Door(application([RunSource(run_in(tmp_path / "run", 3).path)], lambda: over, lambda: 7.0), token=token)


def test_every_answer_forbids_what_does_not_come_from_the_page_itself(tmp_path: Path) -> None:
    app = page(tmp_path)
    for path, method, host, status in [
        ("/", "GET", "localhost", 200),
        ("/static/watch.js", "GET", "localhost", 200),
        ("/static/../page.py", "GET", "localhost", 404),
        ("/events", "GET", "localhost", 200),
        ("/", "POST", "localhost", 405),
        ("/events", "GET", "evil.example", 421),
    ]:
        found, headers, body = answered(app, path, method, host=host)
        assert (path, found) == (path, status)
        assert headers["content-security-policy"].startswith("default-src 'self';")
        assert "unsafe" not in headers["content-security-policy"]
        assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")
        assert status == 200 or b"version" not in body


def test_a_page_that_has_not_changed_is_not_sent_again(tmp_path: Path) -> None:
    app = page(tmp_path)
    _, headers, body = answered(app, "/static/watch.css")
    assert body == static()["watch.css"]
    assert answered(app, "/static/watch.css", if_none_match=headers["etag"])[0] == 304


def test_with_a_token_nothing_is_shown_without_it(tmp_path: Path) -> None:
    app = page(tmp_path, "secret-1")
    assert [answered(app, path)[0] for path in ("/", "/events", "/static/watch.js")] == [401, 401, 401]
    assert answered(app, "/", query="token=secret-2")[0] == 401
    assert answered(app, "/events", query="token=secret-1")[0] == 401
    status, headers, _ = answered(app, "/", query="token=secret-1")
    assert (status, headers["location"]) == (303, "/")
    cookie = headers["set-cookie"].partition(";")[0]
    assert cookie == f"{COOKIE}-8265=secret-1"
    assert "HttpOnly; SameSite=Strict" in headers["set-cookie"]
    assert answered(app, "/", cookie=f"other=1; {cookie}")[0] == 200
    assert answered(app, "/", cookie=f"{cookie}x")[0] == 401
    assert answered(app, "/events", authorization="Bearer secret-1")[0] == 200


def test_a_token_is_asked_for_beyond_this_machine() -> None:
    assert token_of("127.0.0.1", "") == token_of("localhost", "") == ""
    assert len(token_of("0.0.0.0", "")) > 16
    assert token_of("0.0.0.0", "mine-1234") == "mine-1234"
    with pytest.raises(UserError, match="--token"):
        token_of("0.0.0.0", "a b; c=d-----")


# The stream


def told(app: Any, **headers: str) -> list[tuple[str, str, dict[str, Any]]]:
    """The events (name, id, data) of a stream that ends at once."""
    _, found, body = answered(app, "/events", **headers)
    assert found["content-type"].startswith("text/event-stream")
    events = []
    for block in body.decode().strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "event" in fields:
            events.append((fields["event"], fields.get("id", ""), json.loads(fields["data"])))
    return events


def test_the_stream_goes_on_after_the_id_that_a_browser_had(tmp_path: Path) -> None:
    app = page(tmp_path)
    hello, *news = told(app)
    assert hello[2]["sources"][0] == {
        "kind": "run", "name": "run", "path": str(tmp_path / "run"), "job": "digits", "seed": 0,
        "settings": {"lr": 0.1}, "key": 0,
    }  # fmt: skip
    [mark] = [mark for _, mark, _ in news if mark]
    assert int(mark.rpartition(".")[2]) == (tmp_path / "run" / "metrics.jsonl").stat().st_size
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write(row(4))
    again = [data for name, _, data in told(app, last_event_id=mark) if name == "rows"]
    assert [([row[0] for row in data["rows"]], data["fresh"]) for data in again] == [([4], False)]
    for odd in ("", ",,,", "x", "1.9999999", f"{mark}.1"):
        [whole] = [data for name, _, data in told(app, last_event_id=odd) if name == "rows"]
        assert [row[0] for row in whole["rows"]] == [1, 2, 3, 4]


def test_no_text_of_a_run_ends_an_event(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    run.log_file.write_text("2026-01-01T00:00:00Z info: a\r\nevent: bye\n\ndata: {}\u2028\n")
    replaced(run.status_file, json.dumps({"state": "x\n\nevent: bye\ndata: {}\n\n"}))

    async def all_of() -> str:
        return "".join([text async for text in stream([RunSource(run.path)], "", "b", lambda: True, lambda: 1.0)])

    text = asyncio.run(all_of())
    assert [line for line in text.splitlines() if line.startswith("event: bye")] == ["event: bye"]
    assert "\r" not in text
    assert "\u2028" not in text


def test_the_page_is_small_and_asks_for_nothing_elsewhere() -> None:
    kept = static()
    assert set(kept) == set(FILES)
    assert sum(map(len, kept.values())) <= 200_000
    own = b"".join(kept[name] for name in FILES if not name.startswith("uPlot"))
    assert b"innerHTML" not in own
    assert b"http://" not in own.replace(b"http://www.w3.org/2000/svg", b"")
    assert b"https://" not in own
    assert b"style=" not in kept["index.html"]
    assert b"Leon Sorokin" in kept["uPlot.LICENSE"]
