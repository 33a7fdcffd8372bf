"""Functions that actors elsewhere may call in tests: `shoal actor ... --allow pool_calls`."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any


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
