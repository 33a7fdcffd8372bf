"""Tells whether an exception is the user's mistake or ours, and makes the one line for a user's mistake.

The one idea: the user can mend the code of the last frame that is neither ours nor an installed package's. An exception without
such a frame is our own fault, and ends the program with its whole traceback.
"""

from __future__ import annotations

import errno
import os
import sysconfig
import traceback

from shoal.coordinator.keeping.disk import DiskTrouble
from shoal.protocol.errors import UserError

CORE = frozenset({"shoal", "zmq", "msgpack", "numpy", "psutil"})
EXTRA = frozenset(
    {"Box2D", "argcomplete", "gymnasium", "matplotlib", "pydantic", "rich", "safetensors", "sklearn", "tensorboard", "tomli_w"}
    | {"torch"}
)
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})  # a fault of the disk, not ours
LONGEST = 400  # characters of a message


def told(raised: BaseException, job: str = "") -> str | None:
    """The line for the user who typed the command; None if the fault is ours. job: the JOB that was typed, or ""."""
    place, what = _place(raised, job), _what(raised)
    if isinstance(raised, ModuleNotFoundError) and (missing := (raised.name or "").split(".")[0]):
        if missing in EXTRA or not (place or missing in CORE):
            what = f"needs {missing}, which is not installed: pip install 'shoal[all]'"
            return f"{place}: {what}" if place else f"this {what}"
    elif isinstance(raised, UserError) or type(raised).__name__ == "EnvError":  # by name: an edge actor has no environments
        return f"{place}: {what}" if place else what
    elif isinstance(raised, DiskTrouble) or (isinstance(raised, OSError) and raised.errno in FULL and not place):
        return what
    return f"{place}: {type(raised).__name__}: {what}" if place else None


def _place(raised: BaseException, job: str) -> str:
    """The place in the user's own code: "mine.py, line 4, in data"; "" if no frame is in the user's code."""
    if isinstance(raised, SyntaxError) and raised.filename and not _installed(raised.filename):
        return f"{_shown(raised.filename)}, line {raised.lineno}"
    module, sign, _ = job.partition(":")
    place = ""
    for frame, line in traceback.walk_tb(raised.__traceback__):
        name, path = str(frame.f_globals.get("__name__")).split(".")[0], frame.f_code.co_filename
        own = sign != "" and module != "gymnasium" and name == module.split(".")[0]  # the job itself is the user's
        if own or not (name in ("shoal", "__main__") or path.startswith("<") or _installed(path)):
            function = "" if frame.f_code.co_name.startswith("<") else f", in {frame.f_code.co_name}"
            place = f"{_shown(path)}, line {line}{function}"
    return place


def _installed(path: str) -> bool:
    """True for a file of Python's own or of a package in site-packages."""
    paths = sysconfig.get_paths()
    folders = {os.path.realpath(paths[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return any(os.path.realpath(path).startswith(folder + os.sep) for folder in folders)


def _shown(path: str) -> str:
    """The path relative to the current folder if the file lies in it; else the path as it is."""
    near = os.path.relpath(path)
    return path if near.startswith(os.pardir) else near


def _what(raised: BaseException) -> str:
    """The first line of the exception's message, cut at LONGEST characters."""
    text = raised.msg if isinstance(raised, SyntaxError) else str(raised)
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:LONGEST]
