"""Tells whether an exception is the user's mistake or ours, and makes the one line for a user's mistake.

The one idea: the user can mend the code of the last frame that is neither ours nor an installed package's. An exception without
such a frame is our own fault, and ends the program with its whole traceback.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from shoal.coordinator.keeping.disk import DiskTrouble
from shoal.protocol.errors import UserError
from shoal.protocol.place import place_of

CORE = frozenset({"shoal", "zmq", "msgpack", "numpy", "psutil"})
EXTRA = frozenset(
    {
        "Box2D",
        "argcomplete",
        "cmaes",
        "gymnasium",
        "matplotlib",
        "optuna",
        "pydantic",
        "rich",
        "safetensors",
        "scipy",
        "sklearn",
    }
    | {"tensorboard", "tomli_w", "torch"}
)
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})  # a fault of the disk, not ours
LONGEST = 400  # characters of a message


def told(raised: BaseException, job: str = "") -> str | None:
    """The line for the user who typed the command; None if the fault is ours. job: the JOB that was typed, or ""."""
    place, what = place_of(raised, job), _what(raised)
    if isinstance(raised, ModuleNotFoundError) and (missing := (raised.name or "").split(".")[0]):
        if missing in EXTRA or not (place or missing in CORE):
            what = f"needs {missing}, which is not installed: pip install 'shoal[all]'"
            return f"{place}: {what}" if place else f"this {what}"
    elif isinstance(raised, UserError) or type(raised).__name__ == "EnvError":  # by name: an edge actor has no environments
        return f"{place}: {what}" if place else what
    elif isinstance(raised, DiskTrouble) or (isinstance(raised, OSError) and raised.errno in FULL and not place):
        return what
    return f"{place}: {type(raised).__name__}: {what}" if place else None


def _what(raised: BaseException) -> str:
    """The first line of the exception's message, cut at LONGEST characters."""
    text = raised.msg if isinstance(raised, SyntaxError) else str(raised)
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:LONGEST]


@contextmanager
def in_one_line() -> Iterator[None]:
    """Turn a missing module into a UserError that says what to install. Other exceptions in the user's code stay as they
    are."""
    try:
        yield
    except ModuleNotFoundError as missing:
        if line := told(missing):
            raise UserError(line) from missing
        raise
