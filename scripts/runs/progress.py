"""The display of a run while it goes on: a live table of a few lines on a terminal, a line every 5 s elsewhere.

The one idea: a Progress becomes the same few phrases everywhere, and a terminal only lays them out. This module escapes every
text that may come from a peer. A stream that closes ends the display, never the run.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self, TextIO

from shoal.coordinator.reports import Progress, Report
from shoal.protocol.work import Metrics
from shoal.runs.metrics import ordered

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.text import Text

MOST = 6  # metrics shown at once
SHOWN = "waiting"  # the kind of reports that are not displayed: Progress.waiting_for says the same while it holds
SHARES = ("training", "waiting", "moving", "stepping")


def display(stream: TextIO, title: str, quiet: bool = False, every: float = 5.0, form: str = "text") -> Errors:
    """The display for a stream: only errors if quiet; a live table on a terminal; else a line every `every` seconds. form: of
    lines, "text" or "json"; with "json" a terminal gets lines too."""
    if quiet:
        return Errors(stream, form)
    if form == "text" and Lasting(stream).isatty():
        with contextlib.suppress(ModuleNotFoundError):  # rich comes with shoal[all]
            console = _console(stream)
            if not console.is_dumb_terminal:
                return Live(stream, title, console)
    return Lines(stream, title, every, form)


# Phrases ------------------------------------------------------------------------------------------------------------------


def escaped(text: str) -> str:
    """The text with control, bidirectional and broken characters replaced by escapes such as \\x1b."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def indented(report: Report) -> str:
    """A report's text, escaped. Lines after the first (a traceback) begin with a bar, so that a peer cannot forge a line."""
    first, *rest = report.text.rstrip().split("\n")
    often = f" ({report.count} times)" if report.count > 1 else ""
    return "\n    | ".join([escaped(first) + often, *map(escaped, rest)])


def stamped(now: float, level: str, kind: str, text: str, form: str) -> str:
    """A line with its time, in UTC (ISO 8601, seconds), in front. form: "text", or "json" for one object a line: time, level,
    kind, text. now: Unix time."""
    when = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%dT%H:%M:%SZ}"
    if form == "json":
        return json.dumps({"time": when, "level": level, "kind": kind, "text": text})
    return f"{when} {text}"


def position(progress: Progress) -> str:
    """ "version 37 of 100", or "version 812, 210,432 of 500,000 steps"."""
    goal = escaped(progress.goal)
    for word in ("round", "version"):
        if goal.endswith(f" {word}s"):
            return f"{word} {progress.version:,} of {goal.removesuffix(f' {word}s')}"
    if goal.endswith(" steps"):
        return f"version {progress.version:,}, {progress.steps:,} of {goal}"
    return f"version {progress.version:,}, goal {goal}"


def metrics(progress: Progress) -> str:
    names = [
        name
        for name in ordered(progress.metrics)
        if not name.endswith("_bytes") and not name.startswith("lag_") and not name.endswith("_seconds")
    ]
    return "  ".join(f"{escaped(name)} {progress.metrics[name]:.4g}" for name in names[:MOST])


def rates(progress: Progress) -> str:
    steps = f"  {progress.steps_per_second:,.0f} steps/s" if progress.steps else ""
    return f"{progress.contributions_per_second:,.1f} contributions/s{steps}"


def lag(progress: Progress) -> str:
    """ "lag 0/1.5/4", the least, the mean and the largest; "" if all are 0."""
    low, mean, high = progress.lag
    return f"lag {low:g}/{mean:.1f}/{high:g}" if high else ""


def shares(progress: Progress) -> str:
    return "  ".join(f"{name} {progress.shares[name]:.0%}" for name in SHARES if name in progress.shares)


def actors(progress: Progress) -> str:
    return "1 actor" if progress.actors == 1 else f"{progress.actors} actors"


def clock(seconds: float) -> str:
    """ "0:07", "1:02:03"."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def since(progress: Progress) -> str:
    """ "1:02:03", "6:00:00 of virtual time"."""
    return clock(progress.seconds) + " of virtual time" * progress.virtual


def line(progress: Progress) -> str:
    """Return the phrases of a Progress in one line, for a stream that is no terminal."""
    place = [since(progress), position(progress), metrics(progress)]
    return " | ".join(part for part in [*place, rates(progress), lag(progress), shares(progress), actors(progress)] if part)


# Streams ------------------------------------------------------------------------------------------------------------------


class Lasting:
    """A text stream that writes nothing more, instead of raising, when its reader or its terminal has gone.

    Characters that the stream's encoding lacks are written as escapes.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"
        self.gone = False

    def write(self, text: str) -> int:
        self._attempt(self.stream.write, text.encode(self.encoding, "backslashreplace").decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        self._attempt(self.stream.flush)

    def isatty(self) -> bool:
        return not self.stream.closed and self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def _attempt(self, act: Any, *args: str) -> None:
        if self.gone or self.stream.closed:
            return
        try:
            act(*args)
        except OSError:  # BrokenPipeError: `| head`; EIO: the terminal window was closed
            self.gone = True


class Errors:
    """A display of errors only. A display is an observer that holds the terminal until its `with` block ends. form: of its
    lines. now: Unix time, in seconds."""

    def __init__(self, stream: TextIO, form: str = "text", now: Callable[[], float] = time.time) -> None:
        self.stream, self.form, self.now = Lasting(stream), form, now

    def stepped(self, version: int, metrics: Metrics, progress: Progress) -> None:
        pass

    def moved(self, progress: Progress) -> None:
        pass

    def report(self, report: Report) -> None:
        if report.level == "error":
            self._say(report.level, report.kind, f"error: {indented(report)}")

    def _say(self, level: str, kind: str, text: str) -> None:
        self.stream.write(stamped(self.now(), level, kind, text, self.form) + "\n")
        self.stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Lines(Errors):
    """A display that prints a line every `every` seconds of the run's clock (of a run in virtual time: of `now`), each report
    when it comes, and the last state."""

    def __init__(
        self, stream: TextIO, title: str, every: float = 5.0, form: str = "text", now: Callable[[], float] = time.time
    ) -> None:
        super().__init__(stream, form, now)
        self.title = title
        self.every = every
        self.due = 0.0  # the first line comes at once, to show that the run has begun
        self.newest: Progress | None = None
        self.told: Progress | None = None

    def moved(self, progress: Progress) -> None:
        self.newest = progress
        seconds = self.now() if progress.virtual else progress.seconds
        if seconds >= self.due:
            self.due = seconds + self.every
            self._tell(progress)

    def stepped(self, version: int, metrics: Metrics, progress: Progress) -> None:
        self.moved(progress)

    def report(self, report: Report) -> None:
        prefix = "" if report.level == "info" else f"{report.level}: "
        if report.kind != SHOWN:
            self._say(report.level, report.kind, f"{self.title}: {prefix}{indented(report)}")

    def _tell(self, progress: Progress) -> None:
        self.told = progress
        self._say("info", "progress", f"{self.title}: {line(progress)}")
        for waited in progress.waiting_for:
            self._say("warning", "waiting", f"{self.title}: waiting for {escaped(waited)}")

    def __exit__(self, *_: object) -> None:
        if self.newest is not None and self.newest is not self.told:
            self._tell(self.newest)


# A terminal ---------------------------------------------------------------------------------------------------------------


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    lasting: Any = Lasting(stream)  # rich asks of a file only what Lasting has
    return Console(file=lasting, highlight=False, markup=False, emoji=False)


class Live(Lines):
    """A display whose table stays at the terminal's bottom, drawn at most every REFRESH seconds; reports scroll above it."""

    REFRESH = 0.25  # seconds: drawing takes some milliseconds of the coordinator's thread

    def __init__(self, stream: TextIO, title: str, console: Console) -> None:
        from rich.live import Live as RichLive

        super().__init__(stream, title, self.REFRESH)
        self.console = console
        out, err = sys.stdout.isatty(), sys.stderr.isatty()  # a job's prints scroll above; a file is left alone
        self.live = RichLive(console=console, auto_refresh=False, redirect_stdout=out, redirect_stderr=err)

    def report(self, report: Report) -> None:
        from rich.text import Text

        style = {"error": "bold red", "warning": "yellow"}.get(report.level, "dim")
        if report.kind != SHOWN:
            self.console.print(Text(indented(report), style=style))

    def _tell(self, progress: Progress) -> None:
        self.told = progress
        self.live.update(table(self.title, progress), refresh=True)

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.live.stop()


def table(title: str, progress: Progress) -> Group:
    """The table for one Progress, at most 80 characters wide if names and numbers are short enough."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    bar = Table.grid(padding=(0, 1))
    done = min(max(progress.done, 0.0), 1.0)
    bar.add_row(ProgressBar(total=1.0, completed=done, width=40), f"{done:4.0%}", _time(progress))
    waits = [_row(f"waiting for {escaped(waited)}", "yellow") for waited in progress.waiting_for]
    facts = [rates(progress), lag(progress), actors(progress)]
    body = [_row(metrics(progress), "cyan"), _row("  ".join(filter(None, facts))), _row(shares(progress), "dim")]
    return Group(_row(f"{title}  {position(progress)}", "bold"), bar, *filter(None, body), *waits)


def _row(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _time(progress: Progress) -> str:
    if not 0.0 < progress.done < 1.0:
        return since(progress)
    left = progress.seconds * (1 - progress.done) / progress.done
    return f"{since(progress)}, {clock(left)} left"
