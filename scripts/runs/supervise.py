"""A coordinator that is started again when it dies (`shoal coordinator --restart`).

The one idea: the parent process of the coordinator holds no state of the run. The contributions that the run has acknowledged
are in its journal; the next life goes on from the journal, at the same address, with a higher epoch.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from shoal.actors.pool import die_with_parent
from shoal.coordinator.keeping.disk import DiskTrouble, SyncFailed
from shoal.protocol.errors import UserError

MOST = 20  # lives in a row without a new row of metrics, after which the coordinator is not started again
PAUSE = (0.05, 0.5)  # seconds before the next life if the last life exited by itself: the first pause, and the longest
BROKEN = 70  # exit code of a life that ended in an error of ours (sysexits' EX_SOFTWARE)
SIGNALS = (signal.SIGINT, signal.SIGTERM)
LATER = 75  # exit code of a life that found no room on the disk, or that SIGTERM ended (sysexits' EX_TEMPFAIL)


def supervised(
    life: Callable[[bool], int],
    say: Callable[[str], None],
    moved: Callable[[], object],
    wait: Callable[[float], object],
    gone: Callable[[], str] = str,
) -> int:
    """Runs `life(resume)` in a process of its own, again and again until a life ends in good order. Returns its exit code.

    moved: returns another value if the run made progress since the last call. wait: sleeps for a number of seconds. say: prints
    a line for a person. gone: why the run cannot go on ("its folder is gone"); "" if it can. After a SIGINT or SIGTERM to this
    process there is no further life.
    """
    fruitless, pause, resume, relay = 0, PAUSE[0], False, Relay()
    while True:
        before = moved()
        code = _lived(life, resume, relay)
        if code >= 0 and code not in (BROKEN, LATER):
            return code
        if relay.number:
            return code if code == LATER else 128 + relay.number
        why = f"was ended by {signal.Signals(-code).name}" if code < 0 else "broke down" if code == BROKEN else "finds no room"
        if lost := gone():
            say(f"the coordinator {why}, and cannot go on: {lost}")
            return 1
        fruitless, pause = (0, PAUSE[0]) if moved() != before else (fruitless + (code != LATER), pause)
        if fruitless > MOST:
            say(f"the coordinator {why}, {fruitless} times in a row without a new row of metrics: given up")
            return 1
        say(f"the coordinator {why}; it goes on from its journal")
        if code > 0:
            wait(pause)
            pause = min(2 * pause, PAUSE[1])
        resume = True


class Relay:
    """A handler that passes SIGINT and SIGTERM on to the running life. number: the last signal that came; 0: none came."""

    number = 0
    child = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if self.child:
            with suppress(ProcessLookupError):  # the life has just ended
                os.kill(self.child, number)


def _lived(life: Callable[[bool], int], resume: bool, relay: Relay) -> int:
    """The exit code of one life, which this function runs to its end; if a signal ended it, minus the signal's number."""
    parent, relay.child = os.getpid(), 0
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # a signal that comes before the fork waits until the child exists
    before = {number: signal.signal(number, relay) for number in SIGNALS}
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)  # a terminal's Ctrl-C reaches the child only through the parent, once
        _restore(before)
        _live(life, resume, parent)
    relay.child = child
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if relay.number:  # another thread of this process took it before
        relay(relay.number, None)
    status = _awaited(child)
    _restore(before)
    return os.waitstatus_to_exitcode(status)


def _awaited(child: int) -> int:
    """The status that a child ends with. If another thread takes a signal, the wakeup pipe wakes this thread too; a blocking
    waitpid would sleep on."""
    bell, wake = os.pipe()
    os.set_blocking(wake, False)
    before = signal.signal(signal.SIGCHLD, lambda *_: None), signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        while not (found := os.waitpid(child, os.WNOHANG))[0]:
            os.read(bell, 4_096)
    finally:
        signal.signal(signal.SIGCHLD, before[0])
        signal.set_wakeup_fd(before[1])
        os.close(bell)
        os.close(wake)
    return found[1]


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _live(life: Callable[[bool], int], resume: bool, parent: int) -> NoReturn:
    code = BROKEN
    try:
        die_with_parent(parent)
        code = life(resume)
    except UserError as wrong:
        code = BROKEN if resume else 2  # the port of the last life may become free, so a later life is tried
        print(f"shoal: {wrong}", file=sys.stderr)
    except SyncFailed as trouble:
        print(f"shoal: {trouble}", file=sys.stderr)
    except DiskTrouble as trouble:
        code = LATER
        print(f"shoal: {trouble}", file=sys.stderr)
    except Exception:  # noqa: BLE001  any error is printed, and the next life goes on
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def settled(address: str) -> str:
    """The address with a port that every life can bind: `*` and `0` are replaced by a port that is free now."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    if not address.startswith("tcp://") or port not in ("*", "0"):
        return address
    with socket.socket() as probe:
        probe.bind(("" if host == "*" else host, 0))
        return f"tcp://{host}:{probe.getsockname()[1]}"
