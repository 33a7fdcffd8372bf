"""A small process that forks environments' processes, one at a time and at any time.

The one idea: a fork copies one thread and the locks that other threads held. An actor has several threads, so an actor never
forks an environment: it asks this process, which has one thread and runs no user code. The hatchery itself is forked from
the actor before the actor has threads (`Hatchery.forked`), because a user's environment is a function, and a fork hands over
a function without pickles. An environment with an id inherits nothing, so its hatchery can be a fresh interpreter, started
at any moment (`Hatchery.started`).

An environment's process lives as long as its *leash* is held: a socket whose other end lies in the hatchery. The hatchery
kills the process when the holder of the leash lets go or ends, however it ends. So no life depends on a thread
(PR_SET_PDEATHSIG fires when the thread that forked ends), and a process that hangs need not listen. The hatchery sends on the
leash how the process ended. If the hatchery ends, its environments' processes end too: it has one thread, so PR_SET_PDEATHSIG
is safe there.
"""

from __future__ import annotations

import gc
import json
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
from dataclasses import asdict
from functools import partial

from shoal.envs import cell
from shoal.envs.making import Environment, Recipe, recipe_of
from shoal.protocol.errors import UserError
from shoal.protocol.front import raise_descriptor_limit
from shoal.protocol.parent import die_with_parent, forked

REQUEST = struct.Struct("=q")  # a seed; two descriptors come with it: of the channel, and of the leash
END = REQUEST.pack(-1)  # a request to end; seeds are never negative
SIGNALS = {int(number): number.name for number in signal.Signals}
ENDING = 5.0  # seconds that a killed process may take to be gone


class Hatchery:
    """A handle on a hatchery, for any thread, and for every process that inherits the handle.

    The hatchery ends when the process that made the handle closes it, drops it, or exits.
    """

    def __init__(self, line: socket.socket, ended: Callable[[], object]) -> None:
        self._line = line
        self._close = weakref.finalize(self, _dismiss, line, os.getpid(), ended)

    @classmethod
    def forked(cls, env: Environment | Recipe) -> Hatchery:
        """A hatchery forked from this process. Call this before the process has threads."""
        if not hasattr(os, "fork"):
            raise UserError("this system cannot fork: step_timeout needs that; leave it at 0")
        raise_descriptor_limit()  # an environment takes two descriptors
        ours, theirs = socket.socketpair()

        def nest() -> None:
            ours.close()
            _Nest(theirs, env).serve()

        pid = forked(nest)
        theirs.close()
        return cls(ours, partial(os.waitpid, pid, 0))

    @classmethod
    def started(cls, env: str | Recipe) -> Hatchery:
        """A hatchery in a fresh interpreter, for an environment with an id. May be called from any thread."""
        raise_descriptor_limit()
        ours, theirs = socket.socketpair()
        given = json.dumps(asdict(recipe_of(env)))
        program = [sys.executable, "-m", "shoal.envs.hatchery", str(theirs.fileno()), given]
        path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen(program, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=path)
        theirs.close()
        return cls(ours, process.wait)

    def hatch(self, seed: int, channel: socket.socket, leash: socket.socket) -> None:
        """Fork a process that serves `channel` (envs/cell.py) until the other end of `leash` is let go. Closes both here."""
        with channel, leash, suppress(ConnectionError):  # the hatchery has ended: the other ends find both sockets closed
            socket.send_fds(self._line, [REQUEST.pack(seed)], [channel.fileno(), leash.fileno()])

    def close(self) -> None:
        """End the hatchery and its environments. No process of these is left when this returns."""
        self._close()


def _dismiss(line: socket.socket, maker: int, ended: Callable[[], object]) -> None:
    if os.getpid() == maker:  # a process that inherited the handle leaves the hatchery running
        with suppress(ConnectionError):
            line.sendall(END)
        ended()
    line.close()


class _Nest:
    """The hatchery's own process."""

    def __init__(self, line: socket.socket, env: Environment | Recipe) -> None:
        os.setpgid(0, 0)  # a process group of its own: a terminal's Ctrl-C does not reach it
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        self._line, self._env = line, env
        self._leashes: dict[int, tuple[int, socket.socket]] = {}  # leash's descriptor -> (pid that it holds, leash)
        self._bell, self._rung = os.pipe()
        for end in (self._bell, self._rung):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._rung, warn_on_full_buffer=False)
        self._poller = select.poll()
        for descriptor in (self._line.fileno(), self._bell):
            self._poller.register(descriptor, select.POLLIN)
        gc.freeze()  # every environment's process shares the pages of today's objects: the collector must not write to them

    def serve(self) -> None:
        while True:
            ready = {descriptor for descriptor, _ in self._poller.poll()}
            if self._bell in ready:
                self._reap()
            for descriptor in ready.intersection(self._leashes):
                self._end(descriptor)
            if self._line.fileno() in ready and not self._take():
                break
        for descriptor in self._leashes:
            self._end(descriptor)
        while self._leashes and select.select([self._bell], [], [], ENDING)[0]:
            self._reap()

    def _take(self) -> bool:
        """Serve one request. Returns False if no more will come."""
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
            pid = forked(partial(self._hatched, parent, seed, channel, leash))
        except OSError as refused:
            _last_word(leash, f"could not be forked ({refused.strerror})")
            return
        with suppress(OSError):  # the new process has done so itself, or has ended
            os.setpgid(pid, pid)
        self._leashes[leash.fileno()] = pid, leash
        self._poller.register(leash, select.POLLIN)

    def _hatched(self, parent: int, seed: int, channel: socket.socket, leash: socket.socket) -> None:
        """Run the new process: close everything that is not its own, then serve. Its group holds whatever it starts."""
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
        """Kill the process of a leash that nobody holds. `_reap` waits for it: a process inside a driver ends when it can."""
        self._forget(descriptor)
        _kill(self._leashes[descriptor][0])

    def _forget(self, descriptor: int) -> None:
        with suppress(KeyError):  # the leash was let go before
            self._poller.unregister(descriptor)

    def _reap(self) -> None:
        os.read(self._bell, 4_096)
        for descriptor, (pid, leash) in list(self._leashes.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                _kill(pid)  # kills the processes that it had started
                del self._leashes[descriptor]
                self._forget(descriptor)
                code = os.waitstatus_to_exitcode(status)
                _last_word(leash, f"was ended by {SIGNALS.get(-code, -code)}" if code < 0 else f"exited with code {code}")


def _kill(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # no process of the group is left; macOS: all of them are zombies
        os.killpg(group, signal.SIGKILL)


def _last_word(leash: socket.socket, text: str) -> None:
    with leash, suppress(OSError):  # the leash may have no holder any more
        leash.sendall(text.encode())


if __name__ == "__main__":
    import gymnasium  # noqa: F401  imported once here, not again in every process

    _Nest(socket.socket(fileno=int(sys.argv[1])), Recipe(**json.loads(sys.argv[2]))).serve()
