"""Facts about the machine on which a figure was measured.

The one idea: a figure without its machine, versions and load is a rumour.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = ("shoal", "numpy", "torch", "pyzmq", "msgpack", "gymnasium", "scikit-learn")


def versions() -> dict[str, str]:
    """Returns the versions of Python, Shoal and those libraries that are installed and that a figure may depend on."""
    return {"python": platform.python_version(), **dict(_libraries())}


def facts() -> dict[str, Any]:
    """Returns facts of the machine as it is now. memory: in bytes. load: means over 1, 5 and 15 minutes."""
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": cpu(),
        "memory": _memory(),
        "system": platform.system(),
        "kernel": platform.release(),
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def cpu() -> str:
    """Returns the processor's name, as far as the system tells."""
    for row in _lines(Path("/proc/cpuinfo")):
        name, _, value = row.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def resident(peak: bool = False) -> int:
    """Returns bytes of this process's resident memory now, or with `peak` its highest value; 0 on other systems than Linux."""
    wanted = "VmHWM" if peak else "VmRSS"
    rows = (row.split() for row in _lines(Path("/proc/self/status")))
    return next((int(row[1]) * 1024 for row in rows if row and row[0] == f"{wanted}:"), 0)


def _memory() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def _libraries() -> Iterator[tuple[str, str]]:
    for name in LIBRARIES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.exists() else []
