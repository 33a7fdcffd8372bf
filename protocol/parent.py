"""The first and the last thing that a forked process does: it ends when the one above it does, and runs nothing of that one's.

The one idea: every level says so for itself, first thing after the fork, because what one process was promised is not
inherited by its children.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """This process ends when `parent` does. Where the system cannot promise it, the loops look at getppid instead."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it ended before we could say so


def forked(life: Callable[[], int | None]) -> int:
    """The id of a copy of this process, of one thread, in which `life` is lived: it returns the exit code (None: 0).

    What it raises is printed, and the code is 1. Nothing of this process is run at its end.
    """
    _flush()  # or the copy writes it once more
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12, of threads: whoever calls has weighed it
        pid = os.fork()
    if pid == 0:
        for name, number in (("stdout", 1), ("stderr", 2)):  # a notebook's streams hand on to a thread that is not here
            if getattr(sys, name) is not getattr(sys, f"__{name}__"):
                setattr(sys, name, open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False))  # noqa: SIM115
        lived(life)
    return pid


def lived(life: Callable[[], int | None]) -> NoReturn:
    """The same in this very process."""
    code: int | None = 1
    try:
        code = life()
    finally:
        if sys.exc_info()[0] is not None:
            sys.__excepthook__(*sys.exc_info())
        _flush()  # os._exit writes nothing
        os._exit(code or 0)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or there is none
            stream.flush()
