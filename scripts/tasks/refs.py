"""A large result that nobody here has looked at.

The one idea: a result lies in the memory, or the file, into which its call wrote it. The pool takes a hold on that memory, so
it outlives the call's process, and calls that depend on the result read it there: the program in between neither opens nor
copies it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from shoal.protocol.trusted import Parcel, opened
from shoal.tasks.inputs import Seen


class Ref:
    """parcel: of the result, whose memory this process holds."""

    __slots__ = ("_known", "_lock", "_value", "parcel")

    def __init__(self, parcel: Parcel) -> None:
        self.parcel = parcel
        self._lock = threading.Lock()
        self._known, self._value = False, None

    def open(self) -> Any:
        """The result, the same at each call. Raises what its own code raises when it is unpickled."""
        with self._lock:
            if not self._known:
                self._value, self._known = opened(self.parcel.data), True
            return self._value


class Passed:
    """A result as an argument of a call, which it is when it is opened there. seen: is told of it, because the call needs its
    memory until it is done."""

    __slots__ = ("_seen", "ref")

    def __init__(self, ref: Ref, seen: Seen) -> None:
        self.ref, self._seen = ref, seen

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        self._seen.add(self.ref)
        return opened, (self.ref.parcel.data,)
