"""Functions that actors elsewhere may call in tests: `shoal actor ... --allow pool_calls`."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import shoal


def double(x: Any) -> Any:
    return x * 2


def total(array: Any) -> float:
    return float(array.sum())


def own_pid(_: object = None) -> int:
    return os.getpid()


def fails(x: int) -> int:
    raise KeyError(x)


def odd(x: int) -> int:
    class OddError(Exception): ...

    raise OddError(x)


def unfit() -> Any:
    return {1, 2}


def begins(path: str, seconds: float = 0.0) -> int:
    """Leave a line; then take some time."""
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    threading.Event().wait(seconds)
    return os.getpid()


def dies(path: str) -> int:
    """End this process at the first call."""
    begins(path)
    with open(path) as file:
        if len(file.readlines()) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def gives_up(path: str) -> str:
    """Wait until the caller gives this call up."""
    begins(path)
    for _ in range(3_000):
        if shoal.cancelled():
            return "gave up"
        threading.Event().wait(0.01)
    return "nobody gave it up"


def uses(path: str, nbytes: int) -> int:
    """Use memory until there is a file."""
    used = bytearray(nbytes)
    used[::4_096] = b"x" * len(used[::4_096])
    while not os.path.exists(path):
        threading.Event().wait(0.01)
    return len(used)


def shares(array: Any, seconds: float) -> tuple[int, float, bool]:
    threading.Event().wait(seconds)
    return os.getpid(), float(array.sum()), bool(array.flags.writeable)
