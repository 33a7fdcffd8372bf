"""The nursery, a small process that forks actors on demand and tells which of them ended; and its parent's hold on it.

The one idea: the nursery has everything heavy imported and one thread, so an actor costs a fork instead of an import, and a new
actor can be had at any time. A process ends with the process above it: parent, nursery, actor.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NoReturn, TypeAlias

from shoal.protocol.errors import UserError
from shoal.protocol.parent import die_with_parent as die_with_parent
from shoal.protocol.parent import forked

Life: TypeAlias = Callable[[Mapping[str, Any]], int]
"""The work of an actor process, from plain data to an exit code. Called in the forked process. "born" in the data is the
number of processes that were forked before this one."""

LEFT, UNFIT = 64, 65  # exit codes of this run's own actors: left in good order; of no use. A user's code may exit with 0 or 2
GRACE = 3.0  # seconds that actors have to leave by themselves
STARTING = 10.0  # seconds without a word after which a forked nursery is ended: a lock hangs it that another thread held
ENDED = "the process from which this machine's actors are forked has ended"


class Pool:
    """The parent's hold on a nursery. A nursery ends with the thread that made it, so a thread makes it that outlives the run.

    alive: process ids of the actors. fault: why the nursery forks no more actors; "" as long as it can. lost: exit statuses of
    processes that are no actors (`grow` with aside), which have ended and were not taken out. lives: process id -> the
    arguments that an actor was forked with, until they are taken out.
    """

    def __init__(self, line: socket.socket, pid: int, await_end: Callable[[], object], starting: float | None) -> None:
        self._line, self.pid, self._await_end, self._starting = line, pid, await_end, starting
        line.setblocking(False)
        self._read = b""
        self.alive: set[int] = set()
        self.lost: list[int] = []
        self._aside: set[int] = set()
        self.lives: dict[int, Mapping[str, Any]] = {}
        self._births: deque[Mapping[str, Any] | None] = deque()  # arguments of processes that were asked for; None: no actor
        self.fault = ""
        self._begun = False

    @classmethod
    def forked(cls, life: Life) -> Pool:
        """A nursery that is a copy of this process, with the user's functions and data as they are here."""
        if not hasattr(os, "fork"):
            raise UserError("this system cannot fork: run `shoal actor` in terminals of their own, or use --actors 0")
        ours, theirs = socket.socketpair()
        gc.freeze()  # actors share the pages of these objects until the collector touches them
        parent = os.getpid()

        def nursery() -> NoReturn:
            ours.close()
            _let_go(theirs)
            if os.isatty(
                0
            ):  # a person answers the program, and not one of its actors: a question there finds no answer at once
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            Nursery(theirs, life, parent).serve()

        pid = forked(nursery)
        theirs.close()
        return cls(ours, pid, lambda: os.waitpid(pid, 0), STARTING)

    @classmethod
    def started(cls, module: str, word: str) -> Pool:
        """A nursery in a fresh interpreter: `python -m MODULE DESCRIPTOR PARENT`. word: the first line that it is sent."""
        ours, theirs = socket.socketpair()
        program = [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(os.getpid())]
        path = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        child = subprocess.Popen(  # in a process group of its own, which a terminal's Ctrl-C does not reach
            program, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=path, process_group=0
        )
        theirs.close()
        ours.sendall(word.encode() + b"\n")
        return cls(ours, child.pid, child.wait, None)

    def ready(self, given_up: Callable[[], object] = str) -> None:
        """Wait until the nursery can fork, or until `given_up` is true. Raises UserError if the nursery has a fault."""
        waited = 0.0
        while not (self._begun or self.fault or given_up()):
            select.select([self._line], [], [], 0.1)
            self.ended()
            waited += 0.1
            if self._starting is not None and waited > self._starting:
                os.kill(self.pid, signal.SIGKILL)
                why = "another thread held a lock; put the job into a file and run FILE.py:job"
                self.fault = f"a copy of this process hangs, because {why}"
        if self.fault:
            raise UserError(self.fault)

    def grow(self, many: int, arguments: Mapping[str, Any], aside: bool = False) -> None:
        """Fork `many` more actors. arguments: plain data that each of them lives with. aside: they are no actors, and stand
        neither in `alive` nor in `ended`."""
        self._births.extend([None if aside else arguments] * many)
        with suppress(BrokenPipeError):  # `fault` will say so
            self._line.sendall(json.dumps([many, dict(arguments)]).encode() + b"\n")

    def ended(self) -> dict[int, int]:
        """Process id -> exit status of actors that have ended since the last call. A negative status is the signal that ended
        the actor."""
        with suppress(BlockingIOError):
            try:
                while chunk := self._line.recv(65_536):
                    self._read += chunk
            except ConnectionResetError:
                pass
            self.fault = self.fault or ENDED
        *lines, self._read = self._read.split(b"\n")
        ended: dict[int, int] = {}
        for word in map(json.loads, lines):
            if isinstance(word, str):  # the nursery's first word: why it cannot begin, or ""
                self._begun, self.fault = True, word or self.fault
                continue
            pid, status = word
            if status is None:
                if (arguments := self._births.popleft()) is None:
                    self._aside.add(pid)
                else:
                    self.alive.add(pid)
                    self.lives[pid] = arguments
            elif pid in self._aside:
                self._aside.discard(pid)
                self.lost.append(status)
            else:
                self.alive.discard(pid)
                ended[pid] = status
        return ended

    def fileno(self) -> int:
        """The descriptor that has something to read when there is news."""
        return self._line.fileno()

    def close(self) -> None:
        """End the nursery and its actors, which have GRACE seconds to leave by themselves. None is left when this returns."""
        with suppress(OSError):  # the nursery has ended
            self._line.shutdown(socket.SHUT_RDWR)  # not only closed: a process forked meanwhile may hold a copy of the socket
        self._line.close()
        with suppress(ChildProcessError):  # another part of this process waits for every child
            self._await_end()
        gc.unfreeze()


def _let_go(line: socket.socket) -> None:
    """Replace the inherited sockets that have a name (a notebook's ports, the line to another run's actors) by /dev/null.

    Open here, such a socket would outlive its owner. The descriptors stay taken, because objects in this copy may still close
    them.
    """
    folder, nothing = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd", os.open(os.devnull, os.O_RDWR)
    for number in map(int, os.listdir(folder)):
        with suppress(OSError):  # the descriptor of the listing itself is closed by now
            if stat.S_ISSOCK(os.fstat(number).st_mode) and number != line.fileno():
                with socket.socket(fileno=os.dup(number)) as copy:
                    named = bool(copy.getsockname())
                if named:
                    os.dup2(nothing, number, inheritable=False)


class Nursery:
    """The nursery process: one thread, and no socket but the line to its parent."""

    def __init__(self, line: socket.socket, life: Life, parent: int) -> None:
        die_with_parent(parent)
        self._line, self._life = line, life
        self._children: set[int] = set()
        self._born = 0
        self._bell, bell = os.pipe()
        os.set_blocking(bell, False)
        os.set_blocking(self._bell, False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to hear
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # a terminal closes: actors say Bye, and the parent ends us
            signal.signal(signal.SIGHUP, lambda *_: None)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(bell, warn_on_full_buffer=False)

    def serve(self) -> NoReturn:
        """Fork actors as the parent asks, until the parent is gone or closes its end of the line."""
        buffer = b""
        self.say("")
        while chunk := self._wait():
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                many, arguments = json.loads(line)
                for _ in range(many):
                    self._fork(arguments)
        self._end()
        os._exit(0)

    def _wait(self) -> bytes:
        """Return the parent's next words; b"" if the parent is gone."""
        while True:
            ready, _, _ = select.select([self._line.fileno(), self._bell], [], [])
            if self._bell in ready:
                os.read(self._bell, 4_096)
                self._reap()
            if self._line.fileno() in ready:
                try:
                    return self._line.recv(65_536)
                except ConnectionResetError:
                    return b""

    def _fork(self, arguments: Mapping[str, Any]) -> None:
        parent = os.getpid()

        def actor() -> int:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            die_with_parent(parent)
            self._line.close()
            return self._life({**arguments, "born": born})

        born, self._born = self._born, self._born + 1
        pid = forked(actor)
        self._children.add(pid)
        self.say([pid, None])

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if pid in self._children:  # else a process that the job started
                self._children.discard(pid)
                self.say([pid, os.waitstatus_to_exitcode(status)])

    def say(self, word: object) -> None:
        with suppress(OSError):  # a parent that is gone need not know
            self._line.sendall(json.dumps(word).encode() + b"\n")

    def _end(self) -> None:
        """The parent has gone or said that it is over."""
        for ending in (signal.SIGTERM, signal.SIGKILL):
            self._reap()
            for pid in self._children:
                with suppress(ProcessLookupError):
                    os.kill(pid, ending)
            while self._children and select.select([self._bell], [], [], GRACE)[0]:
                os.read(self._bell, 4_096)
                self._reap()
