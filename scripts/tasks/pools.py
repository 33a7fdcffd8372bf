"""The pools that joblib's calls use one after another.

The one idea: processes that a call of joblib needed are kept for the next call, for a minute, because many programs make many
calls; and no longer, because they hold memory.
"""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from typing import NamedTuple

from shoal.tasks.pool import Pool


class Kind(NamedTuple):
    """actors: processes of this machine. threads: of each. address, keys, trusted: where actors of other machines join, as for
    `Pool`; "": nowhere."""

    actors: int
    threads: int
    address: str = ""
    keys: str = ""
    trusted: bool = False

    def made(self) -> Pool:
        door = {"address": self.address, "keys": self.keys or None, "trusted": self.trusted} if self.address else {}
        return Pool(self.actors, threads=self.threads, progress=False, **door)  # type: ignore[arg-type]  # as the names say


@dataclass(slots=True, eq=False)
class _Kept:
    """A pool. users: calls of joblib that use it. timer: ends the pool when nobody has used it for `idle` seconds."""

    pool: Pool
    kind: Kind
    idle: float
    users: int = 0
    timer: threading.Timer | None = None


class Pools:
    """Used by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[_Kept] = []
        self._pid = os.getpid()

    def take(self, kind: Kind, idle: float) -> Pool:
        """A pool of this kind, which `give_back` or `drop` ends the use of. Local pools of other kinds that nobody uses end."""
        with self._lock:
            if self._pid != os.getpid():  # a fork: the parent's pools are not for this process to use or to end
                self._kept, self._pid = [], os.getpid()
            found = None
            for kept in list(self._kept):
                if kept.users == 0:
                    if kept.timer:
                        kept.timer.cancel()
                    if (kept.kind != kind and not kept.kind.address) or not kept.pool.alive:
                        self._end(kept)
                        continue
                if kept.kind == kind and kept.pool.alive:
                    found = kept
            if found is None:
                found = _Kept(kind.made(), kind, idle)
                self._kept.append(found)
                if kind.address:
                    print(f"on another machine type: {found.pool.join_line()}", file=sys.stderr, flush=True)
            found.users += 1
            found.idle = idle
            return found.pool

    def give_back(self, pool: Pool) -> None:
        with self._lock:
            for kept in self._kept:
                if kept.pool is pool:
                    kept.users -= 1
                    if kept.users == 0 and not kept.kind.address:  # else its actors, who have joined, would leave
                        kept.timer = threading.Timer(kept.idle, self._tire, [kept])
                        kept.timer.daemon = True
                        kept.timer.start()

    def drop(self, pool: Pool) -> None:
        """End a local pool and wait until its processes have ended, unless another call uses it."""
        with self._lock:
            dropped = [kept for kept in self._kept if kept.pool is pool and kept.users <= 1 and not kept.kind.address]
            for kept in dropped:
                self._kept.remove(kept)
                if kept.timer:
                    kept.timer.cancel()
        if dropped:
            pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """End all pools that nobody uses, and wait until their processes have ended."""
        with self._lock:
            ended = [kept for kept in self._kept if kept.users == 0]
            for kept in ended:
                self._end(kept)
        for kept in ended:
            kept.pool.shutdown()
            if kept.timer:
                kept.timer.join()  # its thread would be one beside which no process can be copied

    def _tire(self, kept: _Kept) -> None:
        with self._lock:
            if kept.users == 0 and kept in self._kept:
                self._end(kept)

    def _end(self, kept: _Kept) -> None:
        self._kept.remove(kept)
        if kept.timer:
            kept.timer.cancel()
        kept.pool.shutdown(wait=False)
