"""The number of threads that a process of a run computes with: 1, unless the user's OMP_NUM_THREADS says more.

The one idea: actors and learner share the cores, so torch's own threads would only fight over them; and a sum that is split
over threads has other bits. The user's own process gets its number back when its last run has ended. torch has a number for
each thread that has computed and a number for new threads, and sets both at once. So the number for new threads alone is read
and set in a new thread.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from shoal.protocol import cgroups
from shoal.protocol.errors import UserError
from shoal.protocol.parent import lone as lone

LIBRARIES = frozenset({"numpy", "scipy", "sklearn", "torch"})  # that compute with threads of their own, if they are loaded


@dataclass(slots=True)
class _Held:
    """State of this process. runs: runs under way. before: torch's number for new threads before these runs (0: unknown)."""

    runs: int = 0
    before: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self) -> None:
        if self.runs and not self.before and (torch := sys.modules.get("torch")):
            self.before = _elsewhere(torch.get_num_threads)


_HELD = _Held()


def few() -> int:
    """Set torch's number, if torch is loaded, to what OMP_NUM_THREADS asks for. Returns the number."""
    with _HELD.lock:
        _HELD.note()
    return _set()


def asked_for() -> int:
    """The number in OMP_NUM_THREADS, of which the first counts if there are several; 1 if it is not set. Raises UserError."""
    said = os.environ.get("OMP_NUM_THREADS", "") or "1"
    first = said.split(",")[0].strip()
    if not (first.isdecimal() and int(first)):
        raise UserError(f"OMP_NUM_THREADS={said}: must be a whole number from 1; set it to 1, or unset it")
    return int(first)


def _set() -> int:
    number = asked_for()
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(number)
        number = torch.get_num_threads()
    return number


def _elsewhere(act: Callable[[], int | None]) -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(act() or 0))
    thread.start()
    thread.join()
    return found[0]


@contextmanager
def few_threads() -> Iterator[None]:
    """Few threads in this block, for the thread that runs it and for new ones. Code in the block that may have imported torch
    calls `few` afterwards."""
    asked_for()  # it may be a mistake
    torch = sys.modules.get("torch")
    own = torch.get_num_threads() if torch else 0
    with _HELD.lock:
        _HELD.runs += 1
        _HELD.note()
        few_here = _set()
    try:
        yield
    finally:
        with _HELD.lock:
            _HELD.runs -= 1
            if torch := sys.modules.get("torch"):
                torch.set_num_threads(own or _HELD.before or few_here)
                with suppress(RuntimeError):  # the program ends, and no thread can be started
                    to_come = few_here if _HELD.runs else _HELD.before or few_here
                    _elsewhere(lambda: torch.set_num_threads(to_come))
            _HELD.before = _HELD.before if _HELD.runs else 0


def few_for_good(threads: int | None = None) -> int:
    """Set the numbers of torch and numpy in an actor's process, which never takes them back. Returns the number. threads: the
    number, whatever OMP_NUM_THREADS says."""
    unset = "OMP_NUM_THREADS" not in os.environ or threads is not None
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for libraries that the job imports later
    number = _set()  # without the lock, which a thread may have held when this process was forked
    if unset and LIBRARIES & sys.modules.keys():  # what is loaded later reads OMP_NUM_THREADS
        with suppress(ModuleNotFoundError):  # it comes with scikit-learn
            from threadpoolctl import threadpool_limits

            threadpool_limits(threads or 1)
    return number


def crowded(actors: int, threads: int, cores: int) -> str:
    """A warning if the user asked for more threads of all actors together than there are cores; "" otherwise."""
    if threads == 1 or actors * threads <= cores:
        return ""
    return f"{actors} actors of {threads} threads each on {cores} cores get in each other's way: OMP_NUM_THREADS=1 is the usual"


def cores() -> int:
    """The number of cores that this process may use: those it may run on, or fewer if its container has the time of fewer."""
    may = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(may, cgroups.cores())))
