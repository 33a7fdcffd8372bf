"""A folder for a run's local socket, which only this user can enter, and which the run removes when it ends.

The one idea: a run holds a lock on its folder. A run that was killed cannot remove its folder, but the system releases its
lock; so the next run knows which folders to remove.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "shoal-ipc-"


@contextmanager
def socket_folder() -> Iterator[Path]:
    """A folder of mode 0700, so that no other user's actors join. Folders that killed runs left behind are removed first."""
    sweep(Path(tempfile.gettempdir()))
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(held, fcntl.LOCK_EX)
        if folder.is_dir():  # else another run swept it before it was ours
            break
        os.close(held)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def sweep(temporary: Path) -> None:
    """Remove this user's socket folders that no run holds a lock on."""
    for folder in temporary.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # gone already, or not ours
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(held).st_uid == os.geteuid():
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
            finally:
                os.close(held)
