"""The followers of a run under way: started with it, and let go of at its end.

The one idea: a follower hears of the run's end by the end of a pipe, so it hears of a run that was killed too. It is in a
session of its own, so the terminal's Ctrl-C ends the run and lets the follower finish.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Self

from shoal.runs.rundir import RunDir
from shoal.tracking.trackers import Wanted

HELD = 10.0  # seconds that the end of a run waits for its followers, at most


class Followers:
    """The followers of one run, for a `with` block. tell: takes a line for the user."""

    def __init__(self, run: RunDir, wanted: Sequence[Wanted], tell: Callable[[str], object], held: float = HELD) -> None:
        self.run, self.wanted, self.tell, self.held = run, wanted, tell, held
        self._children: list[tuple[Wanted, subprocess.Popen[bytes]]] = []

    def start(self) -> None:
        """Start them. Called after this process's own copies were forked, which would hold the pipes open."""
        for wanted in self.wanted:
            words = [str(self.run.path.absolute()), wanted.name, wanted.to]
            child = subprocess.Popen(  # which forks the follower, and ends
                [sys.executable, "-P", "-m", "shoal.tracking.follower", *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                start_new_session=True,
            )
            self._children.append((wanted, child))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """The run is over: wait until each tracker knows all rows, for `held` seconds at most."""
        until = time.monotonic() + self.held
        for _wanted, child in self._children:
            assert child.stdin is not None, "a pipe"
            child.stdin.close()
        for wanted, child in self._children:
            assert child.stdout is not None, "a pipe"
            try:
                left = max(0.0, until - time.monotonic())
                if wanted.held and not select.select([child.stdout], [], [], left)[0]:
                    self.tell(f"{wanted} does not know all rows yet: its follower goes on by itself")
            finally:
                child.stdout.close()
                child.wait()
