"""Waits of tests: their bound is on silence and not on time.

The one idea: a busy machine is slow, and that is no fault. So a wait fails only if nothing has changed for SILENCE seconds: no
file of the test's folder has grown, and the program has written nothing.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

SILENCE = 240.0  # seconds without a sign of life; Python with torch takes 50 s to start at a load of 25 on two cores
LOOK = 0.02  # seconds between two looks
BEATS = ("status.json",)  # files that a run replaces also while it stands still


def signs(folder: Path | None) -> tuple[int, int]:
    """Returns the number of files below a folder, and their bytes. Files that say only that a process lives do not count."""
    sizes: list[int] = []
    for path in folder.rglob("*") if folder else ():
        if path.name not in BEATS:
            with suppress(OSError):  # it is gone again
                sizes.append(path.stat().st_size)
    return len(sizes), sum(sizes)


def wait_until(
    holds: Callable[[], object], what: Callable[[], str] = str, folder: Path | None = None, silence: float = SILENCE
) -> None:
    """Waits until `holds` returns something true. Raises AssertionError with the words of `what` if no sign of life in `folder`
    (None: there are no signs) has changed for `silence` seconds."""
    before, since, pause = signs(folder), time.monotonic(), threading.Event()
    while not holds():
        if (now := signs(folder)) != before:
            before, since = now, time.monotonic()
        if time.monotonic() - since > silence:
            raise AssertionError(f"nothing moved for {silence:g} s: {what()}")
        pause.wait(LOOK)


def ended(child: subprocess.Popen[str] | subprocess.Popen[bytes], folder: Path | None = None) -> int:
    """Waits for the end of a process and returns its exit status. Kills it and raises AssertionError after SILENCE seconds
    without a sign of life in `folder`."""
    try:
        wait_until(lambda: child.poll() is not None, lambda: f"{child.args!r} has not ended", folder)
    except AssertionError:
        child.kill()
        child.wait()
        raise
    assert child.returncode is not None
    return child.returncode


def ran(
    words: Sequence[str | Path], folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a program in `folder` to its end, and returns its exit status and what it wrote. environment: variables beside those
    of this process."""
    with tempfile.TemporaryDirectory() as kept:
        out, err = Path(kept) / "out", Path(kept) / "err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            child = subprocess.Popen(
                [str(word) for word in words],
                cwd=folder,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )
        try:
            wait_until(
                lambda: child.poll() is not None,
                lambda: f"{words!r} has not ended:\n{err.read_text(errors='replace')[-4_000:]}",
                Path(kept) if folder is None else folder,
            )
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        assert child.returncode is not None
        return subprocess.CompletedProcess(words, child.returncode, out.read_text(), err.read_text())
