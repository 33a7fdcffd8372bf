"""A process that ends when the one above it does.

The one idea: every level says so for itself, first thing after the fork, because what one process was promised is not
inherited by its children.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """This process ends when `parent` does. Where the system cannot promise it, the loops look at getppid instead."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it ended before we could say so
