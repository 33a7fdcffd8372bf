"""Calls whose large results go into files.

The one idea: a file without a name is memory that the system may write to disk when it is short, and it is gone with the last
process that holds it. So results of any size can wait for their turn, and a program that is killed leaves no file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class OnDisk:
    """A result, and the folder in which its large parts are to lie."""

    value: Any
    folder: str


class Filed:
    """The function `fn`, whose result is an OnDisk."""

    def __init__(self, fn: Callable[..., Any], folder: str) -> None:
        self.fn, self._folder = fn, folder
        self.__module__ = getattr(fn, "__module__", "")
        self.__qualname__ = getattr(fn, "__qualname__", type(fn).__name__)

    def __reduce__(self) -> tuple[Any, ...]:
        return Filed, (self.fn, self._folder)

    def __call__(self, *args: Any, **kwargs: Any) -> OnDisk:
        return OnDisk(self.fn(*args, **kwargs), self._folder)
