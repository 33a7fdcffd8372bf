"""A small process that forks actors on demand, and tells which of them ended.

The one idea: it is forked early, when everything heavy is imported and no thread runs yet, so that an actor costs a fork
instead of an import, and a new one can be had at any time. Nobody outlives the one above: parent, pool, actor.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NoReturn, TypeAlias

from shoal.protocol.errors import UserError
from shoal.protocol.parent import die_with_parent as die_with_parent

Life: TypeAlias = Callable[[Mapping[str, Any]], int]
"""What an actor process does, from plain data to an exit code. Called in the forked process."""

GRACE = 3.0  # seconds that actors have to leave by themselves


class Pool:
    """The parent's hold on the pool process. Start it from the main thread: an actor's end hangs on its parent thread."""

    def __init__(self, life: Life) -> None:
        if not hasattr(os, "fork"):
            raise UserError("this system cannot fork: run `shoal actor` in terminals of their own, or use --actors 0")
        self._ours, theirs = socket.socketpair()
        gc.freeze()  # what is here now is shared with every actor: the collector must not touch its pages
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            self._ours.close()
            _Nursery(theirs, life, parent).serve()
        theirs.close()
        self._ours.setblocking(False)
        self._read = b""
        self.alive: set[int] = set()

    def grow(self, many: int, arguments: Mapping[str, Any]) -> None:
        """So many more actors, each living with `arguments` (plain data)."""
        self._ours.sendall(json.dumps([many, dict(arguments)]).encode() + b"\n")

    def gone(self) -> list[int]:
        """Process ids of actors that have ended since the last call."""
        return [pid for pid, status in self._news() if status is not None]

    def ended(self) -> dict[int, int]:
        """The same with their exit statuses; a negative one is the signal that ended it."""
        return {pid: status for pid, status in self._news() if status is not None}

    def _news(self) -> list[tuple[int, int | None]]:
        with suppress(BlockingIOError):
            while chunk := self._ours.recv(65_536):
                self._read += chunk
        *lines, self._read = self._read.split(b"\n")
        news = [tuple(json.loads(line)) for line in lines]
        for pid, status in news:
            (self.alive.add if status is None else self.alive.discard)(pid)
        return [(pid, status) for pid, status in news]

    def fileno(self) -> int:
        """To wait on, for news."""
        return self._ours.fileno()

    def close(self) -> None:
        """No actor is left when this returns: they have a moment to leave, then they are ended."""
        self._ours.close()
        os.waitpid(self.pid, 0)


class _Nursery:
    """The pool process itself: one thread, no sockets but the one to its parent."""

    def __init__(self, line: socket.socket, life: Life, parent: int) -> None:
        die_with_parent(parent)
        self._line, self._life = line, life
        self._children: set[int] = set()
        self._bell, bell = os.pipe()
        os.set_blocking(bell, False)
        os.set_blocking(self._bell, False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to hear
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(bell, warn_on_full_buffer=False)

    def serve(self) -> NoReturn:
        buffer = b""
        while chunk := self._wait():
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                many, arguments = json.loads(line)
                for _ in range(many):
                    self._fork(arguments)
        self._end()
        os._exit(0)

    def _wait(self) -> bytes:
        """What the parent said next; b"" when it is gone."""
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
        pid = os.fork()
        if pid:
            self._children.add(pid)
            self._tell(pid, None)
            return
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            die_with_parent(parent)
            self._line.close()
            code = self._life(arguments)
        finally:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._children.discard(pid)
            self._tell(pid, os.waitstatus_to_exitcode(status))

    def _tell(self, pid: int, status: int | None) -> None:
        with suppress(OSError):  # a parent that is gone need not know
            self._line.sendall(json.dumps([pid, status]).encode() + b"\n")

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
