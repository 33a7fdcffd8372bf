"""How many threads a process of a run computes with: one, unless the user's OMP_NUM_THREADS says more.

The one idea: actors and learner share the cores, so torch's own threads would only fight over them; and a sum that is split
over threads has other bits. The user's own process gets its number back when its last run is over.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Lock


@dataclass(slots=True)
class _Held:
    """torch's number is one a process, and so is this: how many runs are under way, and the number before them (0: unknown)."""

    runs: int = 0
    before: int = 0
    lock: Lock = field(default_factory=Lock)


_HELD = _Held()


def few() -> int:
    """The number that OMP_NUM_THREADS asks for; torch computes with it from now on, where torch is loaded."""
    if torch := sys.modules.get("torch"):
        with _HELD.lock:
            if _HELD.runs and not _HELD.before:
                _HELD.before = torch.get_num_threads()
    return _set()


def _set() -> int:
    number = int(os.environ.get("OMP_NUM_THREADS", "1"))
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(number)
        number = torch.get_num_threads()
    return number


@contextmanager
def few_threads() -> Iterator[None]:
    """For the length of a run. Whoever imports torch meanwhile calls `few` afterwards."""
    with _HELD.lock:
        _HELD.runs += 1
    few()
    try:
        yield
    finally:
        with _HELD.lock:
            _HELD.runs -= 1
            before, last = _HELD.before, not _HELD.runs
            _HELD.before = 0 if last else before
        if last and before:
            sys.modules["torch"].set_num_threads(before)


def few_for_good() -> None:
    """For an actor's process. numpy's threads too, where numpy was loaded without OMP_NUM_THREADS."""
    unset = "OMP_NUM_THREADS" not in os.environ
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for what the job imports later
    _set()  # no lock: another thread of the process that this one was forked from may have held it
    if unset:
        with suppress(ModuleNotFoundError):  # it comes with scikit-learn
            from threadpoolctl import threadpool_limits

            threadpool_limits(1)


def crowded(actors: int, threads: int, cores: int) -> str:
    """What to say of actors whose threads are more than the cores, by the user's own wish; "" otherwise."""
    if threads == 1 or actors * threads <= cores:
        return ""
    return f"{actors} actors of {threads} threads each on {cores} cores get in each other's way: OMP_NUM_THREADS=1 is the usual"


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
