"""What a person sees while a run goes on."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shoal.commands.cli import main
from shoal.coordinator.reports import Progress, Report
from shoal.runs.choosing import brief
from shoal.runs.progress import Errors, Lasting, Lines, Live, display, escaped, line, table

CONTROL = "\x1b[2J\x07[bold]evil[/bold]\u202e"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Gone(io.StringIO):
    """A pipe whose reader has left."""

    def __init__(self, tty: bool = False) -> None:
        super().__init__()
        self.tty = tty
        self.attempts = 0

    def isatty(self) -> bool:
        return self.tty

    def write(self, text: str) -> int:
        self.attempts += 1
        raise BrokenPipeError


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def federated(seconds: float = 14.0, **changes: Any) -> Progress:
    shares = {"waiting": 0.2, "training": 0.7, "moving": 0.1, "stepping": 0.04}
    metrics = {"norm": 1.5, "loss": 0.31254, "accuracy": 0.9}
    plain: dict[str, Any] = {"version": 37, "goal": "100 rounds", "done": 0.37, "contributions": 370, "steps": 0, "actors": 4}
    rates = {"contributions_per_second": 26.4, "steps_per_second": 0.0, "lag": (0, 0.5, 2)}
    return Progress(seconds=seconds, **{**plain, **rates, "shares": shares, "metrics": metrics, **changes})


def reinforcement(**changes: Any) -> Progress:
    rl = {
        "version": 812,
        "goal": "500,000 steps",
        "steps": 210_432,
        "steps_per_second": 31_234.5,
        "metrics": {"return_mean": 181.3},
    }
    return federated(**{**rl, **changes})


def seen(progress: Progress, width: int = 80) -> str:
    console = Console(record=True, width=width, file=io.StringIO(), highlight=False, markup=False)
    console.print(table("digits", progress))
    return console.export_text()


def test_a_federated_run_shows_round_metrics_rates_lag_shares_and_actors() -> None:
    text = seen(federated())
    for said in ("digits", "round 37 of 100", "37%", "accuracy 0.9  loss 0.3125", "26.4 contributions/s", "lag 0/0.5/2"):
        assert said in text
    assert "training 70%  waiting 20%  moving 10%  stepping 4%" in text
    assert "4 actors" in text
    assert "0:14, 0:23 left" in text
    assert "steps/s" not in text


def test_what_is_zero_and_what_few_ask_for_is_not_shown() -> None:
    progress = federated(lag=(0, 0.0, 0), metrics={"loss": 0.5, "down_bytes": 9e6, "sent_bytes": 3.0, "lag_mean": 0.0})
    for text in (line(progress), seen(progress)):
        assert "loss 0.5" in text
        assert "bytes" not in text
        assert "lag" not in text


def test_a_file_is_named_as_seen_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert brief(f"{tmp_path}/here/jobs/mine.py:job") == "jobs/mine.py:job"
    assert brief(f"{tmp_path}/there/mine.py:job") == "mine.py:job"
    assert [brief(name) for name in ("digits", "pack.age:job", "gymnasium:CartPole-v1", "inline:mine")] == [
        "digits",
        "pack.age:job",
        "gymnasium:CartPole-v1",
        "mine",
    ]


def test_a_terminal_is_told_at_once_what_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, words, told in (
        (Terminal(), ["none.py"], "shoal: preparing none.py ...\n"),
        (Terminal(), ["none.py", "--quiet"], "shoal: no file"),
        (io.StringIO(), ["none.py"], "shoal: no file"),
    ):
        monkeypatch.setattr(sys, "stderr", stream)
        assert main(["simulate", *words]) == 2
        assert stream.getvalue().startswith(told)


def test_a_reinforcement_run_shows_steps_and_return() -> None:
    text = seen(reinforcement(actors=1))
    for said in ("version 812, 210,432 of 500,000 steps", "return_mean 181.3", "31,234 steps/s", "1 actor"):
        assert said in text


def test_the_table_fits_eighty_characters_and_five_lines() -> None:
    lines = seen(reinforcement()).rstrip("\n").split("\n")
    assert len(lines) == 5
    assert max(map(len, lines)) <= 80


def test_whom_we_wait_for_is_told_in_yellow() -> None:
    console = Console(record=True, width=80, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(table("digits", federated(waiting_for=("actor a since 7 s", "client 3 since 9 s"))))
    text = console.export_text(styles=True)
    assert "\x1b[33mwaiting for actor a since 7 s\x1b[0m" in text
    assert "\x1b[33mwaiting for client 3 since 9 s\x1b[0m" in text


@pytest.mark.parametrize("changes", [{"metrics": {}, "shares": {}, "done": 0.0}, {"done": 1.5}, {"goal": "until stopped"}])
def test_a_run_that_knows_little_of_itself_is_shown_all_the_same(changes: dict[str, Any]) -> None:
    assert "4 actors" in seen(federated(**changes))
    assert "4 actors" in line(federated(**changes))


def test_peers_text_cannot_steer_the_terminal_nor_pass_for_markup() -> None:
    assert escaped(CONTROL) == "\\x1b[2J\\x07[bold]evil[/bold]\\u202e"
    text = seen(federated(waiting_for=(CONTROL,), metrics={CONTROL: 1.0}))
    assert text.count("\\x1b[2J\\x07[bold]evil[/bold]\\u202e") == 2
    assert "\x1b" not in text


def test_broken_surrogates_are_escaped() -> None:
    assert escaped("a\udcffb") == "a\\udcffb"


# Without a terminal


def test_plain_lines_come_at_once_then_as_often_as_asked_then_at_the_end() -> None:
    stream = io.StringIO()
    with Lines(stream, "digits", every=5.0) as lines:
        for tenth in range(0, 126):
            lines.moved(federated(seconds=tenth / 10))
    times = [text.split()[2] for text in stream.getvalue().splitlines()]
    assert times == ["0:00", "0:05", "0:10", "0:12"]


def test_the_last_state_is_not_told_twice() -> None:
    stream = io.StringIO()
    with Lines(stream, "digits") as lines:
        lines.moved(federated())
    assert len(stream.getvalue().splitlines()) == 1


def test_a_plain_line_says_it_all() -> None:
    assert line(federated()) == (
        "0:14 | round 37 of 100 | accuracy 0.9  loss 0.3125  norm 1.5 | 26.4 contributions/s | lag 0/0.5/2"
        " | training 70%  waiting 20%  moving 10%  stepping 4% | 4 actors"
    )


def test_plain_lines_tell_reports_and_whom_we_wait_for() -> None:
    stream = io.StringIO()
    lines = Lines(stream, "digits", now=lambda: 0.0)
    lines.report(Report("joined", "actor a joined"))
    lines.report(Report("refused", "NaN from actor b", "warning", 3))
    lines.moved(federated(waiting_for=("actor c since 7 s",)))
    told = stream.getvalue().splitlines()
    when = "1970-01-01T00:00:00Z"
    assert told[:2] == [f"{when} digits: actor a joined", f"{when} digits: warning: NaN from actor b (3 times)"]
    assert told[3] == f"{when} digits: waiting for actor c since 7 s"


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_whom_we_wait_for_is_told_by_the_progress_not_by_the_report_as_well(kind: type[io.StringIO]) -> None:
    stream = kind()
    shown = display(stream, "digits")
    shown.report(Report("waiting", "waiting for actor c since 5 s", "warning"))
    assert stream.getvalue() == ""
    shown.moved(federated(waiting_for=("actor c since 7 s",)))
    with shown:
        pass
    assert "waiting for actor c since 7 s" in stream.getvalue()


def test_a_traceback_is_shown_whole_but_cannot_pass_for_our_own_line() -> None:
    stream = io.StringIO()
    Lines(stream, "digits", now=lambda: 0.0).report(
        Report("failed", "client 3 raised\nValueError\ndigits: all is well\n", "error")
    )
    told = stream.getvalue().splitlines()
    assert told == ["1970-01-01T00:00:00Z digits: error: client 3 raised", "    | ValueError", "    | digits: all is well"]


def test_quiet_tells_errors_alone() -> None:
    stream = io.StringIO()
    with display(stream, "digits", quiet=True) as quiet:
        quiet.moved(federated(waiting_for=("actor a",)))
        quiet.stepped(37, {}, federated())
        for level in ("info", "warning", "error"):
            quiet.report(Report("failed", f"an {level}", level))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ error: an error\n", stream.getvalue())


def test_lines_may_be_json_objects_with_time_level_kind_and_text() -> None:
    stream = Terminal()
    lines = display(stream, "digits", form="json")
    lines.report(Report("failed", 'client 3 raised\n"quoted"', "error"))
    lines.moved(federated(waiting_for=("actor c",)))
    told = [json.loads(text) for text in stream.getvalue().splitlines()]
    assert [(one["level"], one["kind"]) for one in told] == [("error", "failed"), ("info", "progress"), ("warning", "waiting")]
    assert all(set(one) == {"time", "level", "kind", "text"} for one in told)
    assert '"quoted"' in told[0]["text"]


# On a terminal


def test_a_terminal_gets_the_table_and_reports_above_it() -> None:
    stream = Terminal()
    with display(stream, "digits") as live:
        assert isinstance(live, Live)
        live.moved(federated())
        live.report(Report("joined", f"actor a {CONTROL} joined"))
    text = stream.getvalue()
    assert "round 37 of 100" in text
    assert text.index("actor a \\x1b[2J\\x07[bold]evil[/bold]\\u202e joined") < text.rindex("round 37 of 100")


def test_the_table_is_drawn_at_most_four_times_a_second_and_ends_on_the_newest_state() -> None:
    stream = Terminal()
    with display(stream, "digits") as live:
        for version in range(1000):
            live.stepped(version, {}, federated(seconds=version / 1000, version=version))
    drawn = stream.getvalue().count(" of 100")
    assert 4 <= drawn <= 6
    assert "round 999 of 100" in stream.getvalue()


def test_the_cursor_comes_back_when_a_run_ends_in_an_error() -> None:
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), display(stream, "digits") as live:  # noqa: PT012
        live.moved(federated())
        raise KeyboardInterrupt
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert type(display(Terminal(), "digits")) is Lines


def test_no_terminal_gets_lines() -> None:
    assert type(display(io.StringIO(), "digits")) is Lines
    assert type(display(io.StringIO(), "digits", quiet=True)) is Errors


@pytest.mark.parametrize("tty", [True, False])
def test_a_reader_who_leaves_ends_the_display_but_not_the_run(tty: bool) -> None:
    stream = Gone(tty)
    with display(stream, "digits", every=0.0) as shown:
        for second in range(9):
            shown.moved(federated(seconds=second))
            shown.report(Report("joined", "actor a joined"))
    assert stream.attempts == 1  # nothing is tried again on a pipe that broke


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_a_stream_that_is_closed_half_way_is_no_error(kind: type[io.StringIO]) -> None:
    stream = kind()
    with display(stream, "digits", every=0.0) as shown:
        shown.moved(federated(seconds=1))
        stream.close()
        shown.moved(federated(seconds=2))
        shown.report(Report("joined", "actor a joined"))


def test_characters_that_the_terminal_lacks_are_escaped() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    Lasting(stream).write("é → ok\n")
    assert raw.getvalue() == b"\\xe9 \\u2192 ok\n"
