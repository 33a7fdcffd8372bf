"""Messages of a few frames between two processes, over a socket pair.

The one idea: the kernel's buffer is the only queue that is not counted. The writer knows how many bytes the other end has not
taken and can stop making more; the reader allocates no more than was agreed; and the end of a process is the end of its
stream, at once.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from shoal.protocol.errors import ProtocolError

FRAMES = 8  # frames of a message, at most
ROOM = 1 << 18  # bytes read at once; a larger frame is read straight into its own memory
AT_ONCE = 256  # buffers written in one call, well below the limits of systems
LENGTH = struct.Struct("<Q")


class Pipe:
    """An end of the socket pair, used by one thread. It never waits: call `flush` again when it can be written, and `take`
    again when it can be read. largest: bytes that a message may have."""

    def __init__(self, end: socket.socket, largest: int) -> None:
        end.setblocking(False)
        self._end, self._largest = end, largest
        self._out: deque[memoryview] = deque()
        self.pending = 0  # bytes that the other end, or the kernel's buffer, has not taken
        self._room = memoryview(bytearray(ROOM))
        self._in = self._room[:0]  # bytes that are read, and not part of a frame yet
        self._lengths: deque[int] = deque()  # of the frames that are still to come of the message that has begun
        self._frames: list[bytearray] = []
        self._rest: memoryview | None = None  # of the newest of these frames, the part to be filled; None between messages

    def fileno(self) -> int:
        return self._end.fileno()

    # Out

    def put(self, frames: Sequence[Any]) -> None:
        """Add a message; it leaves with `flush`. Frames are bytes-like, not copied, and must not change."""
        views = [memoryview(frame).cast("B") for frame in frames]
        head = struct.pack(f"<B{len(views)}Q", len(views), *map(len, views))
        for view in (memoryview(head), *views):
            if len(view):
                self._out.append(view)
                self.pending += len(view)

    def flush(self) -> None:
        """Write as much as the other end takes now. Raises EOFError if there is no other end."""
        try:
            while self._out:
                self._drop(self._end.sendmsg([self._out[at] for at in range(min(AT_ONCE, len(self._out)))]))
        except BlockingIOError:
            return
        except OSError as error:
            raise EOFError("the other end of a pipe is gone") from error

    def _drop(self, sent: int) -> None:
        self.pending -= sent
        while sent:
            view = self._out.popleft()
            if sent < len(view):
                self._out.appendleft(view[sent:])
            sent -= min(sent, len(view))

    # In

    def take(self) -> list[bytearray] | None:
        """The next whole message, or None if it is not here yet. Raises EOFError at the end of the stream, and ProtocolError
        for a message that is malformed or too large."""
        while (frames := self._assembled()) is None:
            if not self._read():
                return None
        return frames

    def _assembled(self) -> list[bytearray] | None:
        if self._rest is None and not self._begun():
            return None
        while self._rest is not None:
            here = min(len(self._in), len(self._rest))
            self._rest[:here] = self._in[:here]
            self._in, self._rest = self._in[here:], self._rest[here:]
            if len(self._rest):
                return None
            self._rest = self._next()
        frames, self._frames = self._frames, []
        return frames

    def _begun(self) -> bool:
        """Begin the first frame of the next message. Returns False if the message's head is not here."""
        if not len(self._in):
            return False
        count = self._in[0]
        if not 1 <= count <= FRAMES:
            raise ProtocolError(f"a message of {count} frames, where 1 to 8 are agreed")
        if len(self._in) < 1 + LENGTH.size * count:
            return False
        lengths = struct.unpack_from(f"<{count}Q", self._in, 1)
        if sum(lengths) > self._largest:
            raise ProtocolError(f"a message of {count} frames and {sum(lengths)} bytes, where {self._largest} are agreed")
        self._in = self._in[1 + LENGTH.size * count :]
        self._lengths.extend(lengths)
        self._rest = self._next()
        return True

    def _next(self) -> memoryview | None:
        if not self._lengths:
            return None
        self._frames.append(bytearray(self._lengths.popleft()))
        return memoryview(self._frames[-1])

    def _read(self) -> bool:
        """Read what is there now. Returns False if nothing is."""
        try:
            if self._rest is not None and len(self._rest) >= ROOM:
                read = self._end.recv_into(self._rest)
                self._rest = self._rest[read:]
            else:
                left = len(self._in)  # at most a part of a head
                self._room[:left] = bytes(self._in)
                read = self._end.recv_into(self._room[left:])
                self._in = self._room[: left + read]
        except BlockingIOError:
            return False
        except ConnectionResetError as error:
            raise EOFError("the other end of a pipe is gone") from error
        if not read:
            raise EOFError("the other end of a pipe is gone")
        return True

    def finish(self) -> None:
        """End the stream: the other end sees that when it has taken everything. Nothing may be put afterwards."""
        with suppress(OSError):
            self._end.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        with suppress(OSError):
            self._end.close()
