"""The limits that control groups of Linux above this process set.

The one idea: a limit of any group above a process bounds it, so the groups are walked from the process's own to the root. A
container may see its own group at the root, under a path that is known outside only: a folder that is missing says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def groups(kind: str, proc: Path, cgroups: Path) -> Iterator[tuple[bool, Path]]:
    """(True in the unified hierarchy, folder) of each group above this process that may bound `kind`: "memory" or "cpu"."""
    for line in lines(proc / "self" / "cgroup"):
        _, kinds, path = line.split(":", 2)
        if kinds == "" or kind in kinds.split(","):
            root = cgroups if kinds == "" else cgroups / kind
            folder = root / path.lstrip("/")
            yield from ((kinds == "", each) for each in (folder, *folder.parents) if each.is_relative_to(root))


def cores(proc: Path = PROC, cgroups: Path = CGROUPS) -> float:
    """The number of cores whose time the groups above this process leave it, a fraction too (`docker run --cpus 1.5`);
    infinite without a limit."""
    return min(
        (found for unified, folder in groups("cpu", proc, cgroups) for found in _quota(unified, folder)), default=math.inf
    )


def _quota(unified: bool, folder: Path) -> Iterator[float]:
    names = ("cpu.max",) if unified else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    of, _, period = " ".join("".join(lines(folder / name)) for name in names).partition(" ")
    if of.isdigit() and period.isdigit() and int(period):  # "max" and -1: no limit
        yield int(of) / int(period)


def number(path: Path) -> int | None:
    """The whole number in a file; None if there is no file, or no limit ("max")."""
    text = "".join(lines(path))
    return int(text) if text.isdigit() else None


def lines(path: Path) -> list[str]:
    """The lines of a file; none if it cannot be read."""
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
