"""How many threads a process of a run computes with: one, unless the user's OMP_NUM_THREADS says more.

The one idea: actors and learner share the cores, so torch's own threads would only fight over them; and a sum that is split
over threads has other bits. The user's own process gets its number back. torch has one number for each thread that has
computed, and one for those to come; it sets both at once, so what is to hold for one alone is set in a thread of its own.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Held:
    """Of this process: how many runs are under way, and torch's number for threads to come before them (0: unknown)."""

    runs: int = 0
    before: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self) -> None:
        if self.runs and not self.before and (torch := sys.modules.get("torch")):
            self.before = _elsewhere(torch.get_num_threads)


_HELD = _Held()


def few() -> int:
    """The number that OMP_NUM_THREADS asks for; torch computes with it from now on, where torch is loaded."""
    with _HELD.lock:
        _HELD.note()
    return _set()


def _set() -> int:
    number = int(os.environ.get("OMP_NUM_THREADS", "1"))
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
    """For the length of a run, in the thread that runs it. Whoever imports torch meanwhile calls `few` afterwards."""
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
                with suppress(RuntimeError):  # the program ends: there are no threads to come
                    to_come = few_here if _HELD.runs else _HELD.before or few_here
                    _elsewhere(lambda: torch.set_num_threads(to_come))
            _HELD.before = _HELD.before if _HELD.runs else 0


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
