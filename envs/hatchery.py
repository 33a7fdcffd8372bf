"""A small process from which environments' processes are forked, one at a time and at any time.

The one idea: a fork copies one thread and the locks that the others held. An actor speaks and works on threads of its own, so
it never forks: this process, which has one thread and runs nobody's code but ours, does so when it is asked. It is forked
itself before there are threads (`Hatchery.forked`), because a user's environment is a function, which cannot be handed over
in any other way without pickles; an environment with an id needs no such inheritance and can have it from a fresh
interpreter at any moment (`Hatchery.started`).

An environment's process lives as long as its *leash* is held, a socket whose other end lies here: it is killed when whoever
asked for it lets go, or ends, however that happens. No promise hangs on a thread (PR_SET_PDEATHSIG fires when the thread that
forked ends), and one that hangs need not listen. Its last word comes back on the leash: how it ended. If this process ends,
all of them do: it has one thread, so there PR_SET_PDEATHSIG is safe.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NoReturn

from shoal.envs import cell
from shoal.envs.vector import Environment
from shoal.protocol.errors import UserError
from shoal.protocol.front import raise_descriptor_limit
from shoal.protocol.parent import die_with_parent

REQUEST = struct.Struct("=q")  # a seed; with it come two descriptors, of the channel and of the leash
END = REQUEST.pack(-1)  # no seed is negative
SIGNALS = {int(number): number.name for number in signal.Signals}
ENDING = 5.0  # seconds that a killed process may take to be gone


class Hatchery:
    """The hold on that process. Any thread may ask, and so may every process that inherits this; it ends with its maker's."""

    def __init__(self, line: socket.socket, ended: Callable[[], object]) -> None:
        self._line = line
        self._close = weakref.finalize(self, _dismiss, line, os.getpid(), ended)

    @classmethod
    def forked(cls, env: Environment) -> Hatchery:
        """From here: call it before this process has threads."""
        if not hasattr(os, "fork"):
            raise UserError("this system cannot fork: step_timeout needs that; leave it at 0")
        raise_descriptor_limit()  # two for each environment
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            _lived(lambda: _Nest(theirs, env).serve())
        theirs.close()
        return cls(ours, partial(os.waitpid, pid, 0))

    @classmethod
    def started(cls, env: str) -> Hatchery:
        """In a fresh interpreter, from any thread, for an environment with an id."""
        raise_descriptor_limit()
        ours, theirs = socket.socketpair()
        program = [sys.executable, "-m", "shoal.envs.hatchery", str(theirs.fileno()), env]
        path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen(program, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=path)
        theirs.close()
        return cls(ours, process.wait)

    def hatch(self, seed: int, channel: socket.socket, leash: socket.socket) -> None:
        """A new process, which lives (envs/cell.py) at the other end of `channel` until that of `leash` is let go. Both are
        closed here."""
        with channel, leash, suppress(ConnectionError):  # it has ended: so has whoever waits at the other ends
            socket.send_fds(self._line, [REQUEST.pack(seed)], [channel.fileno(), leash.fileno()])

    def close(self) -> None:
        """No process of it is left when this returns."""
        self._close()


def _dismiss(line: socket.socket, maker: int, ended: Callable[[], object]) -> None:
    if os.getpid() == maker:  # for those who inherited it, it goes on
        with suppress(ConnectionError):
            line.sendall(END)
        ended()
    line.close()


class _Nest:
    """The process itself."""

    def __init__(self, line: socket.socket, env: Environment) -> None:
        os.setpgid(0, 0)  # what a terminal says to all is for the others to hear
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        self._line, self._env = line, env
        self._leashes: dict[int, tuple[int, socket.socket]] = {}  # by descriptor: whom it holds
        self._bell, self._rung = os.pipe()
        for end in (self._bell, self._rung):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._rung, warn_on_full_buffer=False)
        self._poller = select.poll()
        for descriptor in (self._line.fileno(), self._bell):
            self._poller.register(descriptor, select.POLLIN)
        gc.freeze()  # what is here now is shared with every environment: the collector must not touch its pages

    def serve(self) -> None:
        while True:
            ready = {descriptor for descriptor, _ in self._poller.poll()}
            if self._bell in ready:
                os.read(self._bell, 4_096)
                self._reap()
            for descriptor in ready.intersection(self._leashes):
                self._end(descriptor)
            if self._line.fileno() in ready and not self._take():
                break
        for descriptor in self._leashes:
            self._end(descriptor)
        while self._leashes and select.select([self._bell], [], [], ENDING)[0]:
            os.read(self._bell, 4_096)
            self._reap()

    def _take(self) -> bool:
        """A request; False when there will be no more."""
        request, descriptors, _, _ = socket.recv_fds(self._line, REQUEST.size, 2)
        if request in (b"", END):
            return False
        channel, leash = (socket.socket(fileno=descriptor) for descriptor in descriptors)
        with channel:
            self._fork(REQUEST.unpack(request)[0], channel, leash)
        return True

    def _fork(self, seed: int, channel: socket.socket, leash: socket.socket) -> None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as refused:
            _last_word(leash, f"could not be forked ({refused.strerror})")
            return
        if pid == 0:
            _lived(partial(self._hatched, parent, seed, channel, leash))
        with suppress(OSError):  # it has done so itself, or has ended
            os.setpgid(pid, pid)
        self._leashes[leash.fileno()] = pid, leash
        self._poller.register(leash, select.POLLIN)

    def _hatched(self, parent: int, seed: int, channel: socket.socket, leash: socket.socket) -> None:
        """In the new process: first it lets go of all that is not its own. Its group is what it forks or starts in its turn."""
        die_with_parent(parent)
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for end in (self._bell, self._rung):
            os.close(end)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        for held in (self._line, leash, *(other for _, other in self._leashes.values())):
            held.close()
        cell.live(channel, self._env, seed)

    def _end(self, descriptor: int) -> None:
        """Nobody holds its leash any more. It is waited for as any other: one that a driver holds on to ends when it can."""
        self._forget(descriptor)
        _kill(self._leashes[descriptor][0])

    def _forget(self, descriptor: int) -> None:
        with suppress(KeyError):  # it was let go before
            self._poller.unregister(descriptor)

    def _reap(self) -> None:
        for descriptor, (pid, leash) in list(self._leashes.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                _kill(pid)  # what it had started
                del self._leashes[descriptor]
                self._forget(descriptor)
                code = os.waitstatus_to_exitcode(status)
                _last_word(leash, f"was ended by {SIGNALS.get(-code, -code)}" if code < 0 else f"exited with code {code}")


def _kill(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # none of it is left; macOS: all of it are zombies
        os.killpg(group, signal.SIGKILL)


def _last_word(leash: socket.socket, text: str) -> None:
    with leash, suppress(OSError):  # nobody may be there to hear it
        leash.sendall(text.encode())


def _lived(life: Callable[[], None]) -> NoReturn:
    """A forked process's whole life: nothing of its parent's is run at its end."""
    code = 1
    try:
        life()
        code = 0
    except Exception:  # noqa: BLE001  our own fault, and told before it is over
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    import gymnasium  # noqa: F401  once, and not in every process again

    _Nest(socket.socket(fileno=int(sys.argv[1])), sys.argv[2]).serve()
