"""The life of an actor of a pool on its own machine: one thread, which waits for a task, makes its calls, and answers.

The one idea: the kernel tells each end when the other one ends, so nothing beats, nothing is said twice, and an actor that
waits does nothing. A token in a pipe is a call's leave to begin: a call is begun here or taken back, never both.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack

from shoal.actors.workers.call import Calls
from shoal.protocol.calls import read_task
from shoal.protocol.parent import of_this_process
from shoal.protocol.shared import Segment

TASK = 0x95  # first byte of a task, a list of five; a task in shared memory is a map, and answers that were read a number
PACKET = 1 << 16  # bytes of a message, at most; a larger one lies in shared memory, and its handle is the message
ROOM = 8 * PACKET  # bytes that the kernel may hold for the other end; it grants as much as it is set up for


class LeaveError(Exception):
    """A signal told this actor to leave while it waited for a task."""


class Near:
    """path: of the pool's socket. calls: makes the calls."""

    def __init__(self, path: Path, calls: Calls) -> None:
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)
        self._calls = calls
        self._buffer = bytearray(2 * PACKET)
        self._held: dict[int, list[Segment]] = {}  # index of a task -> memory of its answers, until they are read
        self._told = self._waiting = False
        signal.signal(signal.SIGTERM, of_this_process(lambda *_: self._leave()))
        self._path = path
        self._tokens = -1

    def live(self) -> None:
        """Make calls until the pool closes its end, or a SIGTERM comes. A call that runs then is ended first."""
        with suppress(LeaveError, ConnectionError, FileNotFoundError), self._line:  # the pool may be gone already
            self._line.connect(str(self._path))
            self._begin()
            while data := self._wait():
                self._take(data)

    def _begin(self) -> None:
        """Say who this is, and share the pipe of tokens."""
        self._tokens, theirs = os.pipe()
        os.set_blocking(self._tokens, False)
        socket.send_fds(self._line, [str(os.getpid()).encode()], [self._tokens, theirs])
        os.close(theirs)

    def _leave(self) -> None:
        self._told = True
        if self._waiting:
            raise LeaveError

    def _wait(self) -> memoryview:
        self._waiting = True
        if self._told:
            raise LeaveError
        many = self._line.recv_into(self._buffer)
        self._waiting = False
        return memoryview(self._buffer)[:many]

    def _take(self, data: memoryview) -> None:
        if data[0] == TASK:
            self._work(*read_task(data))
            return
        said = msgpack.unpackb(data)
        if isinstance(said, int):
            for segment in self._held.pop(said):
                segment.close()
            return
        segment = Segment.open(tuple(said["at"]))
        task = read_task(segment.view())
        segment.close()
        self._work(*task)

    def _work(self, index: int, words: Mapping[str, Any], certain: int, calls: list[Any]) -> None:
        answers, segments = self._calls.made(index, words, calls, self._leave_for(certain))
        packed = msgpack.packb((index, bool(segments), answers))
        if len(packed) > PACKET:
            segment = Segment.create(len(packed))
            segment.write(packed)
            segments = [*segments, segment]
            packed = msgpack.packb({"at": segment.handle, "index": index})
        if segments:
            self._held[index] = segments
        self._line.send(packed)

    def _leave_for(self, certain: int) -> Callable[[], bool]:
        """A function that says whether the next call may begin."""

        def may() -> bool:
            nonlocal certain
            if certain > 0:
                certain -= 1
                return True
            try:
                return bool(os.read(self._tokens, 1))
            except BlockingIOError:
                return False

        return may
