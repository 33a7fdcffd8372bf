"""A pipe that ends a wait.

The one idea: a thread that waits for descriptors waits for one more, which any other thread makes readable.
"""

from __future__ import annotations

import os
import threading


class Wake:
    """Ends another thread's wait, by a byte in a pipe."""

    def __init__(self) -> None:
        self.out, self._in = os.pipe()
        self._lock, self._open = threading.Lock(), True
        os.set_blocking(self.out, False)
        os.set_blocking(self._in, False)

    def __call__(self) -> None:
        with self._lock:  # a byte for every call: the byte that another thread has just written may be cleared already
            try:
                if self._open:  # a closed descriptor's number may be another file's
                    os.write(self._in, b".")
            except BlockingIOError:
                pass  # the pipe is full of bytes that wake

    def clear(self) -> None:
        try:
            os.read(self.out, 4_096)
        except BlockingIOError:
            return

    def close(self) -> None:
        with self._lock:
            self._open = False
            os.close(self.out)
            os.close(self._in)
