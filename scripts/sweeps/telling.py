"""The display of a sweep while it goes on: one line that is replaced on a terminal, a line every 5 s elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

from shoal.runs.progress import escaped
from shoal.sweeps.arms import best
from shoal.sweeps.space import said
from shoal.sweeps.table import which

if TYPE_CHECKING:
    from shoal.sweeps.desk import Desk, Trial
    from shoal.sweeps.found import Sweep

EVERY = 5.0  # seconds between two lines on a pipe
LOOKS = 0.5  # seconds between two lines on a terminal


class Telling:
    """A display on a stream. stream: None tells nothing. many: trials in all, infinite if only time ends the sweep."""

    def __init__(self, stream: TextIO | None, many: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._many, self._clock = stream, many, clock
        self._live = stream is not None and stream.isatty()
        self._next = clock() + (0.0 if self._live else EVERY)

    def begun(self, found: Sweep, desk: Desk) -> Callable[[Trial | None], object]:
        """A function that is called often, and with each trial that is over."""

        def tell(trial: Trial | None) -> None:
            if self._stream is not None and trial is not None and trial.state == "failed":
                row = next(row for row in found.trials if row["trial"] == trial.number)
                self._line_of_its_own(escaped(f"{which(row)} failed: {trial.why}"))
            if self._stream is not None and self._clock() >= self._next:
                self._next = self._clock() + (LOOKS if self._live else EVERY)
                self._show(self._line(found, desk))

        return tell

    def _line(self, found: Sweep, desk: Desk) -> str:
        states = [trial.state for trial in desk.trials.values()]
        over = sum(trial.over for trial in desk.trials.values())
        of = f" of {self._many:,.0f}" if self._many < float("inf") else ""
        words = [f"{over:,}{of} trials", f"{states.count('running')} running"]
        words += [f"{states.count(state)} {state}" for state in ("pruned", "failed") if state in states]
        arms, goal = found.arms, found.goal
        if (arm := best(arms, goal)) is not None:
            words.append(f"best {goal.metric} {arm.mean:.4g} ({said(arm.params)})")
        return ", ".join(words)

    def _show(self, line: str) -> None:
        assert self._stream is not None
        with suppress(OSError, ValueError):  # a terminal that is closed ends the display, never the sweep
            self._stream.write(f"\r\033[K{line[:160]}" if self._live else f"shoal: {line}\n")
            self._stream.flush()

    def _line_of_its_own(self, line: str) -> None:
        assert self._stream is not None
        with suppress(OSError, ValueError):
            self._stream.write(f"\r\033[Kshoal: {line}\n" if self._live else f"shoal: {line}\n")
            self._stream.flush()

    def over(self) -> None:
        """Leave an empty line where the display was."""
        if self._live and self._stream is not None:
            with suppress(OSError, ValueError):
                self._stream.write("\r\033[K")
                self._stream.flush()
