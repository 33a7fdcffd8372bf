"""The line between a sweep and the processes of its trials: a line of JSON a message, over a socket of this user alone.

The one idea: a trial's process does one thing at a time. It says something, and waits for an answer only where one is due.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.runs.rundir import finite


class GoneError(Exception):
    """The other end is gone."""


class Line:
    """An end of a line between the sweep and a process of trials."""

    def __init__(self, own: socket.socket) -> None:
        self._own, self._read = own, b""

    @classmethod
    def to(cls, path: str) -> Line:
        """The line to the sweep that listens at this path."""
        own = socket.socket(socket.AF_UNIX)
        own.connect(path)
        return cls(own)

    def fileno(self) -> int:
        return self._own.fileno()

    def say(self, message: Mapping[str, Any]) -> None:
        """Raises GoneError."""
        try:
            self._own.sendall(json.dumps(finite(message), allow_nan=False).encode() + b"\n")
        except OSError as gone:
            raise GoneError from gone

    def hear(self) -> dict[str, Any]:
        """The next message, for which this waits. Raises GoneError."""
        while b"\n" not in self._read:
            self._read += self._chunk()
        line, _, self._read = self._read.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def heard(self) -> list[dict[str, Any]]:
        """Return the messages that are there now, after one read. Raises GoneError."""
        self._read += self._chunk()
        *lines, self._read = self._read.split(b"\n")
        return [json.loads(line) for line in lines]

    def _chunk(self) -> bytes:
        try:
            chunk = self._own.recv(65_536)
        except OSError as gone:
            raise GoneError from gone
        if not chunk:
            raise GoneError
        return chunk

    def close(self) -> None:
        self._own.close()


def listening(folder: Path) -> socket.socket:
    """A socket at which the processes of trials say hello. folder: of this user alone."""
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(folder / "sweep"))
    made.listen(128)
    return made
