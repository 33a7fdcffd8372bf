"""Actors of other machines in a pool: the door through which they come, and their life on the machine where they are started.

The one idea: each end believes only what its own user said. The pool opens no pickle unless it was made with `trusted=True`;
the actor imports only `--allow` modules, and opens no pickle unless it was started with `--trust-code`.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from shoal.actors import Worker
from shoal.actors.loop import Actor, on_signals
from shoal.actors.pool import Life
from shoal.actors.voice import Voice
from shoal.actors.workers.call import JOBLIB
from shoal.actors.workers.named import NamedCalls
from shoal.protocol import heap
from shoal.protocol.door import ClientKeys, ServerKeys, check_bind, server_keys
from shoal.protocol.errors import UserError
from shoal.protocol.keys import KeyFolder, Pair
from shoal.protocol.memory import room
from shoal.protocol.work import Has
from shoal.runs.threads import cores, few_for_good
from shoal.tasks.machine import gpus
from shoal.tasks.weighing import EVERY, free_here, used_by

KILLED = "a call of this process was killed, and the process ends with it"
UNTRUSTING = "this pool sends pickles (trusted=True): start the actor with --trust-code, or make the pool without trusted=True"
AGAIN = 70  # exit code of an actor whose process is to be replaced


@dataclass(frozen=True, slots=True)
class Door:
    """The address at which actors of other machines join a pool, and its rules. keys: None: this machine's only. trusted:
    pickles may go out, and those of actors that were started with --trust-code are opened."""

    address: str
    keys: ServerKeys | None = None
    trusted: bool = False

    def line(self, address: str) -> str:
        """The command that a person types on a machine that is to join. address: that was bound."""
        place = address.replace("//0.0.0.0:", f"//{socket.gethostname()}:")
        known = f" --key NAME --server {self.keys.pair.public}" if self.keys else ""
        return f"shoal actor {place}{known} {'--trust-code' if self.trusted else '--allow MODULE'}"


def door_of(actors: int, address: str, keys: str | ServerKeys | None, trusted: bool) -> Door | None:
    """The door of a pool; None without an address. Raises UserError, one line."""
    if not address:
        if keys or trusted:
            given = "keys" if keys else "trusted=True"
            raise UserError(f"{given} without an address: a local pool needs none; give address='tcp://HOST:PORT' too")
        return None
    its = server_keys(KeyFolder(), keys) if isinstance(keys, str) else keys
    check_bind(address, its)
    if its is None and actors:
        raise UserError(
            f"address={address!r} without keys: a stranger could pass for one of the pool's own {actors} actors; "
            "type `shoal keys new NAME` and give keys='NAME', or actors=0"
        )
    if its is None and trusted:
        raise UserError("trusted=True without keys: pickles go only to actors that prove a key; give keys='NAME'")
    return Door(address.replace(":0", ":*") if address.endswith(":0") else address, its, trusted)


def checked(allowed: Sequence[str]) -> None:
    """Raises UserError for a module that is not here."""
    for name in allowed:
        try:
            found = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            found = None
        if found is None:
            raise UserError(f"--allow {name}: no such module here; give the name under which Python imports it")


class Watch(threading.Thread):
    """Says once a second how much memory this machine has left, and how much the call of this process uses."""

    def __init__(self, calls: NamedCalls, voice: Voice) -> None:
        super().__init__(name="memory", daemon=True)
        self._calls, self._voice = weakref.ref(calls), voice

    def run(self) -> None:
        pause = threading.Event()
        while (calls := self._calls()) is not None:
            with suppress(OSError):
                told: dict[str, Any] = {"free": list(free_here()), "puts": calls.store.handles()}
                index, word = calls.at
                if word:
                    told["used"] = [index, used_by(os.getpid())]
                self._voice.told = told
            del calls
            pause.wait(EVERY)


def life_of_calls(name: str, allowed: Sequence[str], trusted: bool) -> Life:
    """The life of an actor that does the calls of a pool elsewhere. allowed, trusted: its user's words."""
    sys.path.append(os.getcwd())
    checked(allowed)
    has = Has(cores(), room().nbytes, tuple(gpus()))

    voice = Voice()

    def workshop(workload: Mapping[str, Any]) -> Worker:
        if workload.get("pool") is not True:
            raise UserError("the coordinator runs a job and not a pool of calls: leave --allow and --trust-code out")
        calls = NamedCalls(allowed, trusted, int(workload.get("seed", 0)), few_for_good, voice)
        Watch(calls, voice).start()
        return calls

    def live(arguments: Mapping[str, Any]) -> int:
        called = f"{name}:{os.getpid()}"
        told = threading.Event()
        on_signals(told, [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
        heap.keep()
        os.environ[JOBLIB] = str(few_for_good())
        keys = arguments.get("keys")
        try:
            left = Actor(
                str(arguments["address"]),
                workshop,
                name=called,
                session=os.urandom(8),
                clock=time.monotonic,
                say=lambda text: print(f"{called}: {text}", flush=True),
                interrupted=lambda: "told to stop" if told.is_set() else "",
                keys=ClientKeys(Pair(keys[0], keys[1]), keys[2]) if keys else None,
                has=has,
                trusts=trusted,
                voice=voice,
            ).live()
        except UserError as wrong:
            print(f"shoal: {wrong}", file=sys.stderr)
            return 2
        if left.reason == KILLED:
            return AGAIN
        print(f"{called}: left: {left.reason}", flush=True)
        return 1 if left.failed else 0

    return live
