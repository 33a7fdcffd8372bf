"""The memory of a pool's calls, looked at once a second: what each call really uses, and what is left of the machine.

The one idea: a need is what a call's author promises, and nothing enforces it. So a call that uses more than twice its word is
told once, with the number to write; and while the machine has hardly any memory left, no further call begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

from shoal.protocol.memory import room, whole

EVERY = 1.0  # seconds between two looks
LEAST = 0.05  # share of the memory that is left, below which no call begins
TIMES = 2.0  # times its word that a call may use without a warning
ROUND = 1.1  # times what a call used that the warning says to write


class Held(NamedTuple):
    """A call that runs. word: bytes of its need."""

    pid: int
    function: str
    word: int


class Weigher:
    """short: why no call begins now; "" if calls may. free: bytes that are left, and in all. used: bytes that a process and its
    children have for themselves."""

    def __init__(self, free: Callable[[], tuple[int, int]] | None = None, used: Callable[[int], int] | None = None) -> None:
        self.free, self.used = free or free_here, used or used_by
        self.short = ""
        self._told: set[str] = set()
        self._at = 0.0

    def due(self, now: float) -> bool:
        """Return whether it is time for a look, which then counts as done."""
        if now < self._at:
            return False
        self._at = now + EVERY
        return True

    def look(self, held: Iterable[Held]) -> list[str]:
        """Weigh the calls that run and the machine. Returns warnings, one for each function at most."""
        self.short = shortage(*self.free())
        looked = (self.judge(one.function, one.word, self.used(one.pid)) for one in held if self._untold(one))
        return [warning for warning in looked if warning]

    def _untold(self, one: Held) -> bool:
        return one.word > 0 and one.function not in self._told

    def judge(self, function: str, word: int, used: int) -> str:
        """Return the warning that a call uses more memory than its word; "" if it does not, or a person was told. word, used:
        bytes."""
        if function in self._told or not 0 < TIMES * word < used:
            return ""
        self._told.add(function)
        said, write = f"{word / 1e6:,.0f} MB", f"{max(1, round(ROUND * used / 1e6))}M"
        return (
            f'{function} uses {used / 1e6:,.0f} MB of memory, and its need says {said}: write need=shoal.Need(memory="{write}")'
        )


def shortage(left: int, total: int) -> str:
    """Return why no call begins on a machine; "" if enough of its memory is left. left, total: bytes."""
    if left >= LEAST * total:
        return ""
    return (
        f"no call begins, because {left / 1e9:.1f} GB of {total / 1e9:.1f} GB of memory are left: under {LEAST:.0%}; "
        "give calls that use much need=shoal.Need(memory=...), or end other programs"
    )


def free_here() -> tuple[int, int]:
    """Bytes of this machine's memory that are left, and in all."""
    return room().nbytes, whole()


def used_by(pid: int) -> int:
    """Bytes that no other process shares, of a process and all its children; 0 if it has ended."""
    import psutil  # only calls that say what memory they need are looked at

    nbytes = 0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                nbytes += one.memory_full_info().uss
    return nbytes
