"""What an actor process does from its first moment to its last.

The one idea: a forked actor has its job already and trusts its parent; one from elsewhere gets a name over the wire, and
takes it only from the table of built-in jobs or from what its own user named.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from shoal.actors import Worker
from shoal.actors.loop import Actor, Workshop, on_signals
from shoal.actors.pool import Life
from shoal.jobs.job import Job
from shoal.protocol import heap
from shoal.protocol.door import ClientKeys
from shoal.protocol.errors import UserError
from shoal.protocol.keys import Pair
from shoal.runs.threads import few_for_good


def life_of(job: Job) -> Life:
    """For a forked actor of the coordinator's own machine."""

    def live(arguments: Mapping[str, Any]) -> int:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the coordinator's to hear
        flag = threading.Event()
        on_signals(flag, [signal.SIGTERM])
        return _live(arguments, lambda workload: job.worker(), f"actor-{os.getpid()}", lambda text: None, flag)

    return live


def life_of_any(name: str, own: Job | None, own_name: str) -> Life:
    """For an actor that joins a coordinator, whatever its job. own: a job that this machine's user trusts, and its name."""

    def workshop(workload: Mapping[str, Any]) -> Worker:
        job = _trusted(str(workload.get("job")), own, own_name)
        return job.configured(dict(workload.get("settings", {})), int(workload.get("seed", 0))).worker()

    def live(arguments: Mapping[str, Any]) -> int:
        if own is not None:
            own.problem.hatch()  # now, before there are threads: a coordinator may want a step_timeout
        number = arguments.get("number", 0)
        called = f"{name}-{number}" if arguments.get("many", 1) > 1 else name
        flag = threading.Event()
        on_signals(flag)
        return _live(arguments, workshop, called, lambda text: print(f"{called}: {text}", flush=True), flag)

    return live


def _trusted(asked: str, own: Job | None, own_name: str) -> Job:
    from shoal.jobs.catalog import built_in

    if own is not None:
        return own
    by_module = asked.count(":") > 1  # gymnasium:MODULE:ENV_ID imports a module: none that a peer may choose
    if by_module or (job := built_in(asked)) is None:
        raise UserError(f"the coordinator runs a job of its user's own ({asked!a}): start this actor with --job FILE.py:job")
    return job


def called_on(address: str, keys: ClientKeys | None) -> dict[str, Any]:
    """Where a forked actor goes and with which keys, as plain data."""
    return {"address": address, "keys": [keys.pair.public, keys.pair.secret, keys.server] if keys else []}


def _live(
    arguments: Mapping[str, Any], workshop: Workshop, name: str, say: Callable[[str], None], told: threading.Event
) -> int:
    """Until the run is over or this process is told to stop. Returns an exit code."""
    heap.keep()
    few_for_good()
    try:
        keys = arguments.get("keys")
        actor = Actor(
            str(arguments["address"]),
            workshop,
            name=name,
            session=os.urandom(8),
            clock=time.monotonic,
            say=say,
            interrupted=lambda: "told to stop" if told.is_set() else "",
            keys=ClientKeys(Pair(keys[0], keys[1]), keys[2]) if keys else None,
        )
        left = actor.live()
    except UserError as wrong:
        print(f"shoal: {wrong}", file=sys.stderr)
        return 2
    say(f"left: {left.reason}")
    return 1 if left.failed else 0
