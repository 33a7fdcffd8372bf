"""The memory that can still be had here, and whose limit bounds it.

The one idea: ask before touching. Shared memory is handed out page by page when it is first written, and a page too many is
no error that could be caught: the kernel kills the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from shoal.protocol.cgroups import CGROUPS, PROC, groups, lines, number
from shoal.protocol.errors import UserError


class Room(NamedTuple):
    """nbytes: bytes that can still be had; bound: whose limit that is, "machine" or "container"."""

    nbytes: int
    bound: str


UNBOUNDED = Room(2**62, "machine")  # if no file names a limit; cgroup v1 writes about 2**63 for "no limit"


def claim(what: str, nbytes: int) -> None:
    """Raises UserError, one line, if that many bytes, which a peer asks this process to have, are more than can be had here."""
    have = room()
    if nbytes > have.nbytes:
        raise UserError(
            f"{what} would take {nbytes / 1e9:,.1f} GB of memory, and this {have.bound} has {have.nbytes / 1e9:,.1f} GB left: "
            "take part with a larger machine, or ask the coordinator's user for a smaller job"
        )


def room(proc: Path = PROC, cgroups: Path = CGROUPS) -> Room:
    """The least of the rooms that the machine and every memory cgroup above this process leave."""
    return min([*_machine(proc), *_cgroups(proc, cgroups), UNBOUNDED], key=lambda found: found.nbytes)


def whole(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Bytes of memory in all: the machine's, or the least bound of a memory cgroup above this process if that is less."""
    found = [int(line.split()[1]) * 1024 for line in lines(proc / "meminfo") if line.startswith("MemTotal:")]
    for unified, folder in groups("memory", proc, cgroups):
        if (bound := number(folder / ("memory.max" if unified else "memory.limit_in_bytes"))) is not None:
            found.append(bound)
    return min([*found, UNBOUNDED.nbytes])


def _machine(proc: Path) -> Iterator[Room]:
    for line in lines(proc / "meminfo"):
        if line.startswith("MemAvailable:"):
            yield Room(int(line.split()[1]) * 1024, "machine")


def _cgroups(proc: Path, cgroups: Path) -> Iterator[Room]:
    for unified, folder in groups("memory", proc, cgroups):
        limit, used, cached = (
            ("memory.max", "memory.current", "inactive_file")
            if unified
            else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        )
        if (bound := number(folder / limit)) is not None:
            yield Room(max(0, bound - (number(folder / used) or 0) + _cached(folder, cached)), "container")


def _cached(folder: Path, key: str) -> int:
    """Bytes of file pages, which count as used but are dropped as soon as a process wants their memory."""
    return sum(int(line.split()[1]) for line in lines(folder / "memory.stat") if line.startswith(f"{key} "))
