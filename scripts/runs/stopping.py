"""Ctrl-C and SIGTERM during a run in the main thread.

The one idea: the first signal is a reason to end the run in good order; a second one does what it did before the run.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Container, Sequence
from types import FrameType
from typing import Any, Self

from shoal.protocol.parent import of_this_process


class Stopper:
    """Hears signals (SIGINT and SIGTERM) in a `with` block. In a thread other than the main one it hears nothing.

    reason: which signal came, in words; "" as long as none came. number: the signal's number; 0 as long as none came. again:
    the handler of a second signal; None is the handler of before. numbers: the signals; a SIGHUP that is ignored stays so.
    pausing: the signals after which the run is to go on in another life.
    """

    def __init__(
        self,
        again: Any = None,
        numbers: Sequence[int] = (signal.SIGINT, signal.SIGTERM),
        pausing: Container[int] = (signal.SIGTERM,),
    ) -> None:
        self.numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN or number != signal.SIGHUP]
        self.pausing = pausing
        self.reason, self.number = "", 0
        self._again, self._before = again, dict[int, Any]()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, of_this_process(self._hear)) for number in self.numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def pauses(self) -> bool:
        """True after a signal that pauses the run: SIGTERM, which a machine sends that goes down, and with --pause Ctrl-C."""
        return self.number in self.pausing

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.reason, self.number = f"stopped by {signal.Signals(number).name}", number
        signal.signal(number, self._before[number] if self._again is None else self._again)
