"""The first and the last thing that a forked process does: ask to end with its parent, and exit without its parent's handlers.

The one idea: every process asks for this itself, first thing after the fork, because its children do not inherit what the
kernel promised to it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Make this process end when `parent` does. Where the system cannot promise that, loops look at getppid instead."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # the parent ended before the request above


def of_this_process(hear: Callable[[int, FrameType | None], object]) -> Callable[[int, FrameType | None], None]:
    """A signal handler that calls `hear` in this process alone. In a process that a user's code forks from it (multiprocessing
    does), the signal ends the process, as if no handler had been set: whoever forked it may wait for that."""
    maker = os.getpid()

    def heard(number: int, frame: FrameType | None) -> None:
        if os.getpid() == maker:
            hear(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    return heard


def forked(life: Callable[[], int | None]) -> int:
    """Fork a copy of this process, of one thread, which runs `life` and exits with the code that `life` returns (None: 0).

    Returns the copy's process id. An exception of `life` is printed, and the code is then 1. The copy runs no exit handler of
    this process.
    """
    _flush()  # or the copy would write the same text again
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads: the caller has weighed that
        pid = os.fork()
    if pid == 0:
        for name, number in (("stdout", 1), ("stderr", 2)):  # a notebook's streams hand on to a thread that the copy lacks
            if getattr(sys, name) is not getattr(sys, f"__{name}__"):
                setattr(sys, name, open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False))  # noqa: SIM115
        lived(life)
    return pid


def lived(life: Callable[[], int | None]) -> NoReturn:
    """Run `life` in this very process, and exit as a copy made by `forked` does."""
    code: int | None = 1
    outer = sys.exc_info()[1]  # the caller's, if it forks where it deals with one
    try:
        code = life()
    finally:
        if sys.exc_info()[1] is not outer:
            sys.__excepthook__(*sys.exc_info())
        _flush()  # os._exit flushes nothing
        os._exit(code or 0)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or there is none
            stream.flush()


def lone() -> bool:
    """True if a copy of this process lacks no thread of Python's: there is this one alone, beside ZeroMQ's collector of arrays
    that were sent, which waits for messages and holds nothing."""
    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    return all(type(thread).__module__ == "zmq.utils.garbage" for thread in others)
