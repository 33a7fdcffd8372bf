"""The place in a user's own code that an exception or a function comes from: "mine.py, line 4, in step".

The one idea: the user can mend code that is neither ours nor an installed package's.
"""

from __future__ import annotations

import os
import sysconfig
import traceback
from typing import Any


def place_of(raised: BaseException, job: str = "") -> str:
    """The place of an exception: its last frame in the user's own code; "" if no frame is.

    job: the JOB that was typed, or ""; the module that it names is the user's, also if it is installed.
    """
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


def place_of_function(function: Any) -> str:
    """The place where a function of the user's own begins; "" for any other function, and for what is no Python function."""
    code = getattr(function, "__code__", None)
    owner = str(getattr(function, "__module__", "")).split(".")[0]
    if code is None or owner == "shoal" or code.co_filename.startswith("<") or _installed(code.co_filename):
        return ""
    return f"{_shown(code.co_filename)}, line {code.co_firstlineno}, in {code.co_name}"


def _installed(path: str) -> bool:
    """True for a file of Python's own or of a package in site-packages."""
    paths = sysconfig.get_paths()
    folders = {os.path.realpath(paths[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return any(os.path.realpath(path).startswith(folder + os.sep) for folder in folders)


def _shown(path: str) -> str:
    """The path relative to the current folder if the file lies in it; else the path as it is."""
    near = os.path.relpath(path)
    return path if near.startswith(os.pardir) else near
