"""The first steps of torchrun and of each of its ranks: a process that ends with its parent, and then becomes another program.

The one idea: what the kernel promised to a process outlives exec, so a script needs no line for it. torchrun gives each rank a
session of its own, which a signal to a group does not reach.
"""

from __future__ import annotations

import os
import sys

from shoal.protocol.parent import die_with_parent

PARENT = "SHOAL_PARENT"  # names the process with which the process that reads it is to end


def main() -> None:
    """Become `python WORDS`, with the words of this process. Its own children that begin here end with it."""
    die_with_parent(int(os.environ[PARENT]))
    os.environ[PARENT] = str(os.getpid())
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])


if __name__ == "__main__":
    main()
